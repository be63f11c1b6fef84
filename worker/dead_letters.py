"""Which events could not be posted, and what becomes of them?"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row, scalar_row

from feeds.queries import load_queries

SQL = load_queries(__file__)


class DeadLetter(NamedTuple):
    """An event that could not be posted. `raw` is cut at 64 KiB of `raw_bytes`; `fields` maps a field to its error."""

    dead_letter_id: int
    buried_at: datetime
    code: str
    org_id: str | None
    message: str
    fields: dict[str, str]
    stream: str
    entry_id: str
    added_at: datetime
    raw: bytes
    raw_bytes: int


def list_dead_letters(
    connection: Connection[Any], code: str | None = None, org_id: str | None = None, lines: int = 100
) -> tuple[list[DeadLetter], int]:
    """Return the newest dead letters, at most `lines`, and how many there are."""
    narrowed = {"code": code, "org_id": org_id, "lines": lines}
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        found = cursor.execute(SQL["list_dead_letters"], narrowed).fetchall()
    with connection.cursor(row_factory=scalar_row) as cursor:
        return found, cursor.execute(SQL["count_dead_letters"], narrowed).fetchall()[0]


def find_dead_letters(connection: Connection[Any], dead_letter_ids: Sequence[int]) -> list[DeadLetter]:
    """Return those of these dead letters that exist, oldest first."""
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(SQL["find_dead_letters"], {"dead_letter_ids": list(dead_letter_ids)}).fetchall()


def list_dead_letter_ids(connection: Connection[Any]) -> list[int]:
    """Return every id, oldest first."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(SQL["list_dead_letter_ids"]).fetchall()


def discard_dead_letters(connection: Connection[Any], dead_letter_ids: Sequence[int]) -> list[int]:
    """Forget dead letters for ever; return the ids of those that existed."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(SQL["discard_dead_letters"], {"dead_letter_ids": list(dead_letter_ids)}).fetchall()


def discard_buried_before(connection: Connection[Any], before: datetime | None = None) -> list[int]:
    """Forget those buried before an instant, or all, for ever; return their ids."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(SQL["discard_buried_before"], {"before": before}).fetchall()
