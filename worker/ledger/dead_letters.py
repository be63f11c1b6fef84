"""Which events could not be posted?

A dead letter keeps the event, where it came from and why it was refused. `worker/intake/replay.py` posts one again.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter, ValidationError

from feeds.database import READING, begin
from feeds.queries import load_queries
from worker.events import EVENT_BYTES, OrgId
from worker.ledger.entries import Refusal

SQL = load_queries(__file__)
ORG_ID: TypeAdapter[str] = TypeAdapter(OrgId)


class DeadLetter(NamedTuple):
    """An event that could not be posted.

    `raw` holds at most 64 KiB of the event, whose size is `raw_bytes`. `fields` maps the name of a field to its error.
    """

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


def bury(connection: Connection[Any], refusals: Sequence[Refusal]) -> None:
    """Store refused entries as dead letters. An entry that is a dead letter already stays as it is."""
    entries = [refusal.entry for refusal in refusals]
    reasons = [refusal.reason for refusal in refusals]
    connection.execute(
        SQL["bury"],
        {
            "stream": [entry.stream for entry in entries],
            "entry_id": [entry.entry_id for entry in entries],
            "digest": [entry.digest for entry in entries],
            "raw": [entry.raw[:EVENT_BYTES] for entry in entries],
            "raw_bytes": [entry.size for entry in entries],
            "org_id": [guess_org_id(entry.raw) for entry in entries],
            "code": [reason.code for reason in reasons],
            "message": [reason.message for reason in reasons],
            "fields": [Jsonb(reason.fields) for reason in reasons],
            "added_at": [entry.added_at for entry in entries],
        },
    )


def guess_org_id(raw: bytes) -> str | None:
    """Return the organisation that a refused event names, if it can be read: operators search by it."""
    try:
        event = json.loads(raw[:EVENT_BYTES])
        return ORG_ID.validate_python(event["org_id"], strict=True)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
        return None


def list_dead_letters(
    connection: Connection[Any], code: str | None = None, org_id: str | None = None, limit: int = 100
) -> tuple[list[DeadLetter], int]:
    """Return the newest dead letters, at most `limit`, and how many there are in all.

    Args:
        connection: To Postgres.
        code: Only dead letters with this code.
        org_id: Only dead letters of this organisation.
        limit: How many dead letters are returned at most.
    """
    parameters = {"code": code, "org_id": org_id, "limit": limit}
    with begin(connection, READING):
        with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
            letters = cursor.execute(SQL["list_dead_letters"], parameters).fetchall()
        with connection.cursor(row_factory=scalar_row) as cursor:
            return letters, cursor.execute(SQL["count_dead_letters"], parameters).fetchall()[0]


def find_dead_letters(connection: Connection[Any], dead_letter_ids: Sequence[int]) -> list[DeadLetter]:
    """Return the dead letters with these ids, oldest first. Unknown ids are left out."""
    with begin(connection, READING), connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(SQL["find_dead_letters"], {"dead_letter_ids": list(dead_letter_ids)}).fetchall()


def list_dead_letter_ids(connection: Connection[Any]) -> list[int]:
    """Return the ids of all dead letters, oldest first."""
    with begin(connection, READING), connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(SQL["list_dead_letter_ids"]).fetchall()


def discard_dead_letters(connection: Connection[Any], dead_letter_ids: Sequence[int]) -> list[int]:
    """Delete dead letters for ever. Returns the ids of those that existed."""
    with begin(connection), connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(SQL["discard_dead_letters"], {"dead_letter_ids": list(dead_letter_ids)}).fetchall()


def discard_buried_before(connection: Connection[Any], before: datetime | None = None) -> list[int]:
    """Delete the dead letters buried before a time, or all, for ever. Returns their ids."""
    with begin(connection), connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(SQL["discard_buried_before"], {"before": before}).fetchall()
