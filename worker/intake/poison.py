"""Which entry kills the process that posts it?

A hash in Redis counts, for each shard, the batches in a row that began and never ended. A death is charged to every
shard of the batch, so a shard with a death is posted in batches of its own until one of them ends. After three deaths
the batch is halved until one entry is left. An entry that is left and has killed three more times is buried unposted.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from redis.client import Pipeline

BATCH_MAX = 2000
"""How many entries of one shard a batch takes at most. Against 500, a backlog spread over 1,000 organisations takes a
third less CPU: each organisation is locked, read and written once for several events."""
DEATHS_TOLERATED = 3


class State(Enum):
    """How much a shard is suspected to hold an entry that kills."""

    CALM = auto()
    """The last batch has ended."""
    SUSPECTED = auto()
    """The last batch or two died, perhaps because of an entry of another shard, or of a killed worker."""
    SEARCHING = auto()
    """Three batches died: the next ones are halved."""
    CONDEMNED = auto()
    """Three batches that held only the shard's first entry died: the entry is buried without being posted."""


class Suspicion(NamedTuple):
    """What is known of a shard's deaths.

    `deaths`: batches in a row that began and never ended. `size`: how many entries from the stream's start are
    suspected. `alone`: how many batches died that held only the first entry.
    """

    deaths: int = 0
    size: int = 0
    alone: int = 0

    @property
    def state(self) -> State:
        """Return how much the shard is suspected."""
        if self.alone >= DEATHS_TOLERATED:
            return State.CONDEMNED
        if self.deaths >= DEATHS_TOLERATED:
            return State.SEARCHING
        return State.SUSPECTED if self.deaths else State.CALM

    @property
    def batch_size(self) -> int:
        """Return how many entries the next batch may take."""
        return BATCH_MAX if self.deaths < DEATHS_TOLERATED else max(1, self.size // 2)

    def start(self, size: int) -> "Suspicion":
        """Return what is known while a batch of `size` entries is under way: a death, until the batch has ended."""
        is_alone = size == 1 and self.deaths >= DEATHS_TOLERATED
        return Suspicion(self.deaths + 1, size, self.alone + 1 if is_alone else 0)

    def survive(self, size: int) -> "Suspicion":
        """Return what is known after a batch of `size` entries has ended well."""
        left = self.size - size
        return Suspicion(self.deaths, left) if self.deaths >= DEATHS_TOLERATED and left > 0 else Suspicion()


def key_of(shard: int) -> str:
    """Return the key of a shard's hash."""
    return f"events:deaths:{shard}"


def read_suspicion(fields: object) -> Suspicion:
    """Return the suspicion that a shard's hash holds; none if it cannot be read."""
    if not isinstance(fields, Mapping):
        return Suspicion()
    known = {name.decode(): int(value) for name, value in fields.items()}
    return Suspicion(**{name: known.get(name, 0) for name in Suspicion._fields})


def queue_note(pipeline: Pipeline, shard: int, suspicion: Suspicion) -> None:
    """Queue one command that stores a shard's suspicion."""
    if suspicion == Suspicion():
        pipeline.delete(key_of(shard))
    else:
        fields: dict[Any, Any] = suspicion._asdict()
        pipeline.hset(key_of(shard), mapping=fields)
