"""What came through the streams: entries, and those that could not be posted."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter, ValidationError

from feeds.queries import load_queries
from worker.events import EVENT_BYTES, EventRefused, OrgId

SQL = load_queries(__file__)
LAST_MS = int(datetime(9000, 1, 1, tzinfo=UTC).timestamp() * 1000)
ORG_ID: TypeAdapter[str] = TypeAdapter(OrgId)


class Entry(NamedTuple):
    """One entry of a stream. `raw` is its field `event`; `entry_id` is Redis's, milliseconds first."""

    stream: str
    entry_id: str
    raw: bytes

    @property
    def added_at(self) -> datetime:
        """When it was added, by the clock of Redis; ids that producers made up are bounded."""
        return instant_of(self.entry_id.partition("-")[0])

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the bytes."""
        return hashlib.sha256(self.raw).digest()


@lru_cache(maxsize=16)  # what is added together shares its millisecond
def instant_of(ms: str) -> datetime:
    """Return an instant of Redis's clock."""
    return datetime.fromtimestamp(min(int(ms), LAST_MS) / 1000, UTC)


class Refusal(NamedTuple):
    """An entry that could not be posted, and why."""

    entry: Entry
    reason: EventRefused


def bury(connection: Connection[Any], refusals: Sequence[Refusal]) -> None:
    """Keep what could not be posted as dead letters; one that lies there already stays as it is."""
    entries = [refusal.entry for refusal in refusals]
    reasons = [refusal.reason for refusal in refusals]
    connection.execute(
        SQL["bury"],
        {
            "streams": [entry.stream for entry in entries],
            "entry_ids": [entry.entry_id for entry in entries],
            "digests": [entry.digest for entry in entries],
            "raws": [entry.raw[:EVENT_BYTES] for entry in entries],
            "raw_bytes": [len(entry.raw) for entry in entries],
            "org_ids": [guess_org_id(entry.raw) for entry in entries],
            "codes": [reason.code for reason in reasons],
            "messages": [reason.message for reason in reasons],
            "fields": [Jsonb(reason.fields) for reason in reasons],
            "added_ats": [entry.added_at for entry in entries],
        },
    )


def guess_org_id(raw: bytes) -> str | None:
    """Return the organisation that a refused event names, so that an operator can look for it."""
    try:
        event = json.loads(raw[:EVENT_BYTES])
        return ORG_ID.validate_python(event["org_id"], strict=True)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
        return None
