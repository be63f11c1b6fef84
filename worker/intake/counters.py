"""What have the processes of the write side counted since the streams' Redis was started?

Each process counts, and adds its counts to one hash in Redis when a drain ends: Celery's pool processes have no port
for Prometheus, and come and go. A killed process loses the counts of a second: they are for graphs, not for
accounting.
"""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from feeds.cached.writer import Published
from worker.ledger.batch import Posted

COUNTS = "events:counts"
TYPE = re.compile(rb'"type"\s*:\s*"(usage|grant|revoke|settle)"')

VERIFIED = "events:verified"
"""When `verify` last checked the whole ledger, in seconds of Redis's clock, and how many differences it found."""

pending = Counter[str]()
"""Counts that are not in Redis yet, by a metric's name and the values of its labels, separated by blanks."""


def note_batch(posted: Posted) -> None:
    """Count a posted batch: its events by type and outcome, its movements by kind, and how often it was split."""
    for type_, number in posted.types.items():
        pending[f"events {type_} posted"] += number
    for refusal in posted.refusals:
        pending[f"events {type_of(refusal.entry.raw)} {refusal.reason.code}"] += 1
    for kind, number in Counter(
        movement.kind for movements in posted.movements.values() for movement in movements
    ).items():
        pending[f"movements {kind}"] += number
    pending["batches"] += 1
    pending["batch_splits"] += posted.splits


def note_published(published: Published) -> None:
    """Count the organisations whose feeds a batch changed; `given_up` counts batches. The metric is named `shown`."""
    pending["shown appended"] += published.appended
    pending["shown dropped"] += published.dropped
    pending["shown refused"] += published.refused
    pending["shown given_up"] += published.epoch_renewed


def type_of(raw: bytes) -> str:
    """Return the type of a refused event, found in its bytes: perhaps they could not be parsed."""
    found = TYPE.search(raw)
    return found[1].decode() if found else "unknown"


def flush(streams: Redis) -> None:
    """Add the pending counts to Redis. They stay pending if it is full or away."""
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
    """Note that the whole ledger was verified, for the alert. Does nothing if Redis is full or away."""
    with suppress(RedisError):
        clock: Any = streams.time()
        streams.hset(VERIFIED, mapping={"at": clock[0], "differences": differences})


def read_counts(fields: Mapping[bytes, bytes]) -> dict[str, dict[tuple[str, ...], int]]:
    """Return the counts of the hash, by metric and by the values of its labels."""
    counts: dict[str, dict[tuple[str, ...], int]] = {}
    for field, number in fields.items():
        name, *labels = field.decode(errors="replace").split(" ")
        counts.setdefault(name, {})[tuple(labels)] = int(number)
    return counts
