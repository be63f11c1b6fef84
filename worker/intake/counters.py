"""What have the processes of the write side done since the streams' Redis began?

Counted in the process, and added to one hash in Redis when a drain ends: Celery's pool processes have no port to be
scraped at, and come and go. A killed process takes a second's counts with it: these are for graphs, not for books.
"""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from feeds.cached.writer import Published
from worker.ledger.write import Posted

COUNTS = "events:counts"
TYPE = re.compile(rb'"type"\s*:\s*"(usage|grant|revoke|settle)"')

VERIFIED = "events:verified"
"""When `verify` last went through the whole ledger, in seconds of Redis's clock, and how many differences it found."""

pending = Counter[str]()
"""What is not yet in Redis: a metric's name and the values of its labels, with blanks between."""


def note_batch(posted: Posted) -> None:
    """Count a batch that was posted: its events by type and outcome, its lines by kind, and how often it was split."""
    for type_, number in posted.types.items():
        pending[f"events {type_} posted"] += number
    for refusal in posted.refusals:
        pending[f"events {type_of(refusal.entry.raw)} {refusal.reason.code}"] += 1
    for kind, number in Counter(line.kind for lines in posted.movements.values() for line in lines).items():
        pending[f"movements {kind}"] += number
    pending["batches"] += 1
    pending["batch_splits"] += posted.splits


def note_published(shown: Published) -> None:
    """Count what came of showing a batch, in organisations; `given_up` in batches."""
    pending["shown appended"] += shown.appended
    pending["shown dropped"] += shown.dropped
    pending["shown refused"] += shown.refused
    pending["shown given_up"] += shown.epoch_renewed


def type_of(raw: bytes) -> str:
    """Return the type of a refused event as its bytes say it: perhaps nothing could be parsed."""
    found = TYPE.search(raw)
    return found[1].decode() if found else "unknown"


def add_pending(streams: Redis) -> None:
    """Add what was counted to Redis; kept for the next time where it has no room or is away."""
    changed = {name: number for name, number in pending.items() if number}
    if not changed:
        return
    try:
        with streams.pipeline(transaction=True) as pipeline:
            for name, number in changed.items():
                pipeline.hincrby(COUNTS, name, number)
            pipeline.execute()
    except RedisError:
        return
    pending.clear()


def note_verified(streams: Redis, differences: int) -> None:
    """Note that the whole ledger was verified, for the alert on it; a Redis that has no room is let be."""
    with suppress(RedisError):
        clock: Any = streams.time()
        streams.hset(VERIFIED, mapping={"at": clock[0], "differences": differences})


def read_counts(fields: Mapping[bytes, bytes]) -> dict[str, dict[tuple[str, ...], int]]:
    """Return what the hash holds: by metric, by the values of its labels."""
    counts: dict[str, dict[tuple[str, ...], int]] = {}
    for field, number in fields.items():
        name, *labels = field.decode(errors="replace").split(" ")
        counts.setdefault(name, {})[tuple(labels)] = int(number)
    return counts
