"""How does a command print data?"""

import codecs
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
REF_WIDTH = len("usage_01h455vb4pex5vsknk084sn02q")
"""A column that is no wider than a usual ref folds last."""
FOLDED_WIDTH = len("2026-06-01")
"""The minimum width of a column that may fold."""
CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
"""The texts of producers, printed raw, could send commands to the terminal."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_json(document: Any) -> None:
    """Print one JSON document. If standard output is not UTF-8, it consists of ASCII only."""
    is_utf_8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    click.echo(json.dumps(document, indent=2, ensure_ascii=not is_utf_8, default=format_value))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, with times to the second. No cell is cut off.

    Without a terminal each row is one line. On a terminal that is too narrow, columns fold: first those with long texts
    and with times, then, if that is not enough, all.
    """
    screen = console()
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    cells = [[format_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    times = [any(isinstance(row[index], datetime) for row in rows) for index in range(len(columns))]
    folded = [
        FOLDED_WIDTH if is_time or width > REF_WIDTH else width for width, is_time in zip(widths, times, strict=True)
    ]
    spaces = len(columns) - 1
    is_wide, is_too_wide = sum(widths) + spaces > screen.width, sum(folded) + spaces > screen.width
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int) for row in rows)
        folds = is_too_wide or (is_wide and widths[index] != folded[index])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=not folds)
    for row in cells:
        # A time can fold at a space only.
        table.add_row(
            *(
                Text(cell.replace("T", " ") if is_wide and is_time else cell)
                for cell, is_time in zip(row, times, strict=True)
            )
        )
    screen.print(table)


def print_facts(facts: dict[str, Any]) -> None:
    """Print each name with its value on a line of its own."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {format_value(value)}")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 event`, `1,000 events`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_value(value: Any) -> str:
    """Return a value as text for people: times in UTC, an empty text for None, control characters as escapes."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).translate(CONTROL_CHARACTERS)


def format_cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    return format_value(value.replace(microsecond=0) if isinstance(value, datetime) else value)


def console() -> Console:
    """Return the console of standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def format_refusal(error: EventRefused) -> str:
    """Return why an event was refused, in one line."""
    fields = "; ".join(f"{name}: {reason}" for name, reason in error.fields.items())
    return f"{error.code}: {fields or error.message}"
