"""How are events added to the streams, and who is told?

Needs the core dependencies alone: this is what producers run.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from worker.events import EVENT_BYTES

AWAKE = "events:awake"
AWAKE_MS = 2000
"""For how long a drain, or a wake on its way to one, is taken to be alive."""
REMEMBERED_S = 24 * 3600


def shard_of(org_id: str, event_shards: int) -> int:
    """Return the shard of an organisation: the unsigned CRC-32 of its id, modulo the number of shards."""
    return zlib.crc32(org_id.encode("utf-8", "surrogatepass")) % event_shards


def stream_of(shard: int) -> str:
    """Return the key of a shard's stream; the braces are part of it."""
    return f"events:{{{shard}}}"


def place(event: object, event_shards: int) -> tuple[int, bytes]:
    """Return the shard and the bytes of an event given as decoded JSON, whatever it is.

    What is no event goes the same way and is buried when it is read. What is too large is cut
    right behind the limit: still too large.
    """
    org_id = event.get("org_id") if isinstance(event, dict) else None
    shard = shard_of(org_id, event_shards) if isinstance(org_id, str) else 0
    return shard, json.dumps(event, separators=(",", ":")).encode()[: EVENT_BYTES + 1]


def connect(url: str, **options: Any) -> Redis:
    """Open the streams' Redis: short time-outs, and no silent second try of what may have been done."""
    return Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), protocol=2, **options
    )


def add(streams: Redis, placed: Sequence[tuple[int, bytes]]) -> bool:
    """Add events to their shards' streams in this order, all or none, in one round trip.

    Returns whether nobody was known to be awake: then a drain is to be woken. Raises
    redis.RedisError: nothing was added or, where only the answer was lost, everything; adding the
    same events again is harmless.
    """
    with streams.pipeline(transaction=True) as pipeline:
        queue(pipeline, placed)
        return bool(pipeline.execute()[-1])


def add_once(streams: Redis, placed: Sequence[tuple[int, bytes]], delivery: str) -> bool:
    """Add the events of one delivery as `add` does, but do nothing where a repeat of it comes within a day.

    A repeat would be harmless for refs, not for a revoke that came before its grant.
    """
    key = f"events:post:{delivery}"

    def queue_unless_done(pipeline: Pipeline) -> None:
        done = pipeline.exists(key)
        pipeline.multi()
        if not done:
            queue(pipeline, placed)
            pipeline.set(key, 1, ex=REMEMBERED_S)

    answers = streams.transaction(queue_unless_done, key)
    return bool(answers and answers[-2])


def queue(pipeline: Pipeline, placed: Sequence[tuple[int, bytes]]) -> None:
    """Queue the adding of events, and the claim to be the one who wakes a drain."""
    for shard, raw in placed:
        pipeline.xadd(stream_of(shard), {"event": raw})
    pipeline.set(AWAKE, "producer", nx=True, px=AWAKE_MS)
