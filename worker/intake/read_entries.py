"""How are the first entries of a shard read, whatever their size?"""

from datetime import timedelta
from pathlib import Path
from typing import Any

from redis.client import Pipeline

from worker.events import EVENT_BYTES
from worker.intake.streams import stream_of
from worker.ledger.entries import Entry

SCRIPT = Path(__file__).with_suffix(".lua").read_text()
BYTES_MAX = 8 * 1024 * 1024
"""How many bytes of one shard a batch reads at most: 128 events of the largest size, 30,000 of the usual one."""


def queue_read(pipeline: Pipeline, shard: int, entries_max: int) -> None:
    """Queue one command that reads a shard's first entries; `parse_entries` reads its reply."""
    pipeline.eval(SCRIPT, 1, stream_of(shard), entries_max, BYTES_MAX, EVENT_BYTES + 1)


def parse_entries(shard: int, reply: Any, clock_ahead: timedelta = timedelta()) -> list[Entry]:
    """Return the entries that a reply to `queue_read` holds; raises the reply if it is an error.

    An event over the limit is cut just behind it. An entry without the field `event` is empty; it is buried as such.
    `clock_ahead`: by how much Postgres's clock is ahead of Redis's, which gave the entries their ids.
    """
    if isinstance(reply, Exception):
        raise reply
    stream = stream_of(shard)
    ids, events, sizes = reply[::3], reply[1::3], reply[2::3]
    return [
        Entry(stream, id_.decode(), event, size, clock_ahead)
        for id_, event, size in zip(ids, events, sizes, strict=True)
    ]
