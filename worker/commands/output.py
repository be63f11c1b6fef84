"""How does a command show data?"""

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feeds.movement import format_time
from worker.events import EventRefused

PIPED_WIDTH = 1000
SHORT = len("usage_01h455vb4pex5vsknk084sn02q")
NARROW = len("2026-06-01")
"""The least that a folding column needs."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=format_value))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, times to the second; nothing is cut off.

    Without a terminal each row is one line. On one, what is too wide folds: long texts and times first, then all.
    """
    screen = console()
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    shown = [[format_cell(value) for value in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(columns, *shown, strict=True)]
    times = [any(isinstance(row[place], datetime) for row in rows) for place in range(len(columns))]
    narrow = [NARROW if is_time or width > SHORT else width for width, is_time in zip(widths, times, strict=True)]
    spaces = len(columns) - 1
    is_wide, is_too_wide = sum(widths) + spaces > screen.width, sum(narrow) + spaces > screen.width
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[place], int) for row in rows)
        folds = is_too_wide or (is_wide and widths[place] != narrow[place])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=not folds)
    for row in shown:
        # A space is where a time may fold.
        table.add_row(
            *(Text(cell.replace("T", " ") if is_wide and t else cell) for cell, t in zip(row, times, strict=True))
        )
    screen.print(table)


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values, a line each."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {format_value(value)}")


def count(number: int, noun: str) -> str:
    """Return how many there are of something, in words: `1 event`, `1,000 events`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_value(value: Any) -> str:
    """Return a value as a person reads it: times in UTC, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return format_time(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    return format_value(value.replace(microsecond=0) if isinstance(value, datetime) else value)


def console() -> Console:
    """Return the console of standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def format_refusal(error: EventRefused) -> str:
    """Return why an event was refused, in one line."""
    fields = "; ".join(f"{name}: {reason}" for name, reason in error.fields.items())
    return f"{error.code}: {fields or error.message}"
