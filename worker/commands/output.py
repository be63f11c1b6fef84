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

from feeds.movement import show_time
from worker.events import EventRefused

PIPED_WIDTH = 1000
SHORT = len("2026-06-01T10:00:00.123456Z")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def show_document(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=show_value))


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: to the terminal's width (long texts fold), with nothing cut off where there is no terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[place], int) for row in rows)
        folds = any(len(show_value(row[place])) > SHORT for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=not folds)
    for row in rows:
        table.add_row(*(Text(show_value(value)) for value in row))
    console().print(table)


def show_facts(facts: dict[str, Any]) -> None:
    """Print names and values, a line each."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {show_value(value)}")


def count(number: int, noun: str) -> str:
    """Return how many there are of something, in words: `1 event`, `1,000 events`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show_value(value: Any) -> str:
    """Return a value as a person reads it: times in UTC, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return show_time(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def console() -> Console:
    """Return the console of standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def show_refusal(error: EventRefused) -> str:
    """Return why an event was refused, in one line."""
    fields = "; ".join(f"{name}: {reason}" for name, reason in error.fields.items())
    return f"{error.code}: {fields or error.message}"
