"""Which shards could not be posted because of their surroundings, when, and why?

Their events wait, and no dead letter tells of them. So a hash in Redis keeps the last error of each such shard until a
batch of the shard is posted. `health` and the metrics show it.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError

from worker.ledger.faults import PostingFails, describe

FAILURES = "events:failures"


class Failure(NamedTuple):
    """The last failed batch of a shard after which none was posted. `at_s` is in seconds of Redis's clock."""

    shard: int
    at_s: float
    error: str


def note_failures(streams: Redis, shards: Iterable[int], error: Exception) -> None:
    """Store why the shards of a batch could not be posted. Does nothing if Redis is full or away."""
    problem = error.problem if isinstance(error, PostingFails) else describe(error)
    with suppress(RedisError):
        time: Any = streams.time()
        note = json.dumps({"at_s": time[0] + time[1] / 1e6, "error": problem})
        if notes := {str(shard): note for shard in shards}:
            fields: dict[Any, Any] = notes
            streams.hset(FAILURES, mapping=fields)


def queue_clearing(pipeline: Pipeline, shards: Iterable[int]) -> None:
    """Queue one command that forgets the failures of shards that were posted."""
    pipeline.hdel(FAILURES, *map(str, shards))


def parse_failures(fields: object) -> list[Failure]:
    """Return the failures that the hash holds, the newest first; none if it cannot be read."""
    if not isinstance(fields, Mapping):
        return []
    failures = [Failure(int(shard), **json.loads(note)) for shard, note in fields.items()]
    return sorted(failures, key=lambda failure: -failure.at_s)
