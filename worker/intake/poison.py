"""Which entry kills the process that posts it?

A shard's hash in Redis counts the batches that began and never ended. After three such deaths in a
row the batch that died is searched by halves; an entry that stands alone and has killed three
times more is buried.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from redis.client import Pipeline

BATCH = 2000
"""How many entries a shard gives to a batch at most. Against 500, a backlog spread over 1,000 organisations takes a
third less CPU: each organisation is locked, read and written once for several events."""
DEATHS_TOLERATED = 3


class Suspicion(NamedTuple):
    """What is known of a shard's deaths.

    `deaths`: batches in a row that began and never ended. `size`: how many entries from the
    stream's start are suspected. `alone`: how often a lone entry has died.
    """

    deaths: int = 0
    size: int = 0
    alone: int = 0

    @property
    def batch(self) -> int:
        """How many entries the next batch may take."""
        return BATCH if self.deaths < DEATHS_TOLERATED else max(1, self.size // 2)

    @property
    def guilty(self) -> bool:
        """Whether the shard's first entry is to be buried unposted."""
        return self.alone >= DEATHS_TOLERATED

    def survive(self, size: int) -> "Suspicion":
        """Return what is known after a batch of `size` entries has ended well."""
        left = self.size - size
        return Suspicion(self.deaths, left) if self.deaths >= DEATHS_TOLERATED and left > 0 else Suspicion()


def key_of(shard: int) -> str:
    """Return the key of a shard's hash."""
    return f"events:deaths:{shard}"


def read_suspicion(fields: object) -> Suspicion:
    """Return what a shard's hash says; what cannot be read says nothing."""
    if not isinstance(fields, Mapping):
        return Suspicion()
    known = {name.decode(): int(value) for name, value in fields.items()}
    return Suspicion(**{name: known.get(name, 0) for name in Suspicion._fields})


def begin(pipeline: Pipeline, shard: int, before: Suspicion, size: int) -> None:
    """Note that a batch of `size` entries is about to be posted: a death, until `end` takes it back."""
    alone = before.alone + 1 if size == 1 and before.deaths >= DEATHS_TOLERATED else 0
    write(pipeline, shard, Suspicion(before.deaths + 1, size, alone))


def end(pipeline: Pipeline, shard: int, after: Suspicion) -> None:
    """Take the death back."""
    if after == Suspicion():
        pipeline.delete(key_of(shard))
    else:
        write(pipeline, shard, after)


def write(pipeline: Pipeline, shard: int, suspects: Suspicion) -> None:
    """Put a shard's hash."""
    fields: dict[Any, Any] = suspects._asdict()
    pipeline.hset(key_of(shard), mapping=fields)
