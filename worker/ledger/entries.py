"""What is an entry of a stream, and how is one kept that cannot be posted?"""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from worker.events import EventRefused

LAST_MS = int(datetime(9000, 1, 1, tzinfo=UTC).timestamp() * 1000)


class Entry(NamedTuple):
    """One entry of a Redis stream: the stream's key, the entry's id, and the bytes of its field `event`.

    `raw` may be cut behind the limit of an event; then `uncut_size` says how many bytes the event had. `clock_ahead`:
    by how much Postgres's clock is ahead of Redis's, which gave the entry its id.
    """

    stream: str
    entry_id: str
    raw: bytes
    uncut_size: int | None = None
    clock_ahead: timedelta = timedelta()

    @property
    def size(self) -> int:
        """Return the true number of bytes of the event."""
        return len(self.raw) if self.uncut_size is None else self.uncut_size

    @property
    def added_at(self) -> datetime:
        """Return when the entry was added, by Postgres's clock. Producers may choose ids, so the time is bounded."""
        added_at = read_milliseconds(self.entry_id.partition("-")[0])
        return added_at + self.clock_ahead if self.clock_ahead else added_at

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of `raw`."""
        return hashlib.sha256(self.raw).digest()


class Refusal(NamedTuple):
    """An entry that could not be posted, and the reason."""

    entry: Entry
    reason: EventRefused


@lru_cache(maxsize=16)  # entries that are added together share their millisecond
def read_milliseconds(milliseconds: str) -> datetime:
    """Return the time that an entry's id begins with, at most the year 9000."""
    return datetime.fromtimestamp(min(int(milliseconds), LAST_MS) / 1000, UTC)
