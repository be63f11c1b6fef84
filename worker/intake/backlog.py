"""How much waits in each shard, and since when?"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError

from worker.intake.streams import milliseconds_of, stream_of

SCRIPT = Path(__file__).with_suffix(".lua").read_text()


class Backlog(NamedTuple):
    """What waits in one shard: how many entries, and the ids of the first and the last (None if there are none).

    `is_broken`: the shard's key is not a stream, so nothing can be posted from it.
    """

    shard: int
    length: int = 0
    first_id: str | None = None
    last_id: str | None = None
    is_broken: bool = False

    def age_s(self, now_s: float) -> float:
        """Return how long the first entry has waited, given the time of Redis's clock; 0 if nothing waits.

        Never negative: clocks step back, and producers may choose ids.
        """
        return max(0.0, now_s - milliseconds_of(self.first_id) / 1000) if self.first_id else 0.0


def read_backlogs(streams: Redis, shards: Iterable[int]) -> list[Backlog]:
    """Return the backlog of each shard, in one round trip."""
    asked = list(shards)
    with streams.pipeline(transaction=False) as pipeline:
        queue_backlogs(pipeline, asked)
        return parse_backlogs(asked, pipeline.execute(raise_on_error=False))


def queue_backlogs(pipeline: Pipeline, shards: Iterable[int]) -> None:
    """Queue one command for each shard; `parse_backlogs` reads the replies."""
    for shard in shards:
        pipeline.eval(SCRIPT, 1, stream_of(shard))


def parse_backlogs(shards: Iterable[int], replies: Sequence[Any]) -> list[Backlog]:
    """Return the backlogs that the replies to `queue_backlogs` hold. Raises a reply that is an error of the server."""
    return [parse_backlog(shard, reply) for shard, reply in zip(shards, replies, strict=True)]


def parse_backlog(shard: int, reply: Any) -> Backlog:
    """Return the backlog that one reply holds."""
    if isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply):
        return Backlog(shard, is_broken=True)
    if isinstance(reply, Exception):
        raise reply
    length, first_id, last_id = reply
    return Backlog(shard, length, first_id and first_id.decode(), last_id and last_id.decode())
