"""Which events could not be posted, and what becomes of them?"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row, scalar_row

from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import EventRefused, EventTooLarge
from worker.intake.batch import Show
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries

SQL = load_queries(__file__)

REPLAYED_AT_ONCE = 500


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


class Replayed(NamedTuple):
    """The ids of those that are posted now, and of those that were refused again, each with the reason."""

    posted: list[int]
    refused: dict[int, EventRefused]


def replay(
    connection: Connection[Any],
    ledger: Ledger,
    dead_letter_ids: Sequence[int],
    show: Show,
) -> Replayed:
    """Post dead letters again, oldest first, as the entries that they were; those posted are dead letters no more.

    They are forgotten last: who dies before can do it again, and every ref is posted once. `show` is
    told that feeds may lack earlier lines, as those of a first, dead attempt.
    """
    outcome = Replayed([], {})
    ordered = sorted(set(dead_letter_ids))
    for start in range(0, len(ordered), REPLAYED_AT_ONCE):
        letters = find_dead_letters(connection, ordered[start : start + REPLAYED_AT_ONCE])
        refused = {letter.dead_letter_id: too_large() for letter in letters if letter.raw_bytes > len(letter.raw)}
        whole = {entry_of(letter): letter.dead_letter_id for letter in letters if letter.dead_letter_id not in refused}
        with connection.transaction():
            posted = post_entries(connection, ledger, list(whole), again=True)
        show(connection, posted, True)
        refused |= {whole[refusal.entry]: refusal.reason for refusal in posted.refusals}
        outcome.refused.update(refused)
        outcome.posted.extend(discard_dead_letters(connection, unrefused(letters, refused)))
    return outcome


def entry_of(letter: DeadLetter) -> Entry:
    """Return the entry that a dead letter was."""
    return Entry(letter.stream, letter.entry_id, letter.raw)


def too_large() -> EventRefused:
    """Say why an event of which only the beginning was kept cannot be posted."""
    return EventTooLarge("only its first 64 KiB were kept")


def unrefused(letters: Iterable[DeadLetter], refused: dict[int, EventRefused]) -> list[int]:
    """Return the ids of the others."""
    return [letter.dead_letter_id for letter in letters if letter.dead_letter_id not in refused]
