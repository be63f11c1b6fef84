"""How are events added to the streams, and how is a drain woken?

Producers run this, so it needs only the core dependencies.
"""

import hashlib
import json
import re
import sys
import zlib
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from feeds.addresses.redis import RedisAddress, parse_redis
from worker.events import EVENT_BYTES
from worker.intake.failover import leaving_replicas

TIMEOUT_S = 2.0

AWAKE = "events:awake"
AWAKE_MS = 2000
"""How long the awake key lasts: a drain, or the message that wakes one, is assumed to be on its way."""
DELIVERY_REMEMBERED_S = 24 * 3600
"""How long a delivery is remembered. Our transport forgets it with the acknowledgement: at 110 messages a second, 115
bytes each would fill a Redis of 1 GB."""
WHOLE = re.compile(r"-?\d{1,30}", re.ASCII)


def shard_of(org_id: str, event_shards: int) -> int:
    """Return the shard of an organisation: the unsigned CRC-32 of its id, modulo the number of shards."""
    return zlib.crc32(org_id.encode("utf-8", "surrogatepass")) % event_shards


def stream_of(shard: int) -> str:
    """Return the key of a shard's stream; the braces are part of the key."""
    return f"events:{{{shard}}}"


def order_of(entry_id: str) -> tuple[int, int]:
    """Return what Redis orders entries by: milliseconds, then a sequence number."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def milliseconds_of(entry_id: str) -> int:
    """Return when an entry was added, in milliseconds of Redis's clock."""
    return order_of(entry_id)[0]


def place(event: object, event_shards: int) -> tuple[int, bytes]:
    """Return the shard and the bytes of an event that is given as decoded JSON.

    Something that is not an event is placed too, and buried when it is posted. An event over the size limit is cut just
    behind the limit: it is still too large.
    """
    org_id = event.get("org_id") if isinstance(event, dict) else None
    org_id = to_json(org_id) if isinstance(org_id, UUID | bytes) else org_id
    shard = shard_of(org_id, event_shards) if isinstance(org_id, str) else 0
    return shard, json.dumps(event, separators=(",", ":"), default=to_json).encode()[: EVENT_BYTES + 1]


def to_json(value: object) -> object:
    """Return what a value means in JSON that Celery's JSON has turned into a Python object: its text, or its number."""
    if isinstance(value, Decimal):
        return int(value) if WHOLE.fullmatch(str(value)) else float(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def delivery_of(task_id: str, body: bytes | str) -> str:
    """Return the name of one delivery: producers may give two messages the same task id."""
    raw = body.encode(errors="surrogateescape") if isinstance(body, str) else bytes(body)
    return f"{task_id}:{hashlib.sha256(raw).hexdigest()[:32]}"


def delivery_key(delivery: str) -> str:
    """Return the key under which a delivery is remembered."""
    return f"events:post:{delivery}"


def connect(address: RedisAddress | str, **options: Any) -> Redis:
    """Open the streams' Redis: with short time-outs, and without silent retries of what may have been done already.

    The address may set other time-outs: `socket_timeout` and `socket_connect_timeout`, in seconds.
    """
    address = parse_redis(address) if isinstance(address, str) else address
    limits = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S} | dict(address.limits)
    # redis-py opens at most 100 connections by default, and refuses the 101st thread or greenlet.
    fixed = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "max_connections": sys.maxsize}
    pool = address.pool(**limits, **fixed, **options)
    pool.connection_class = leaving_replicas(pool.connection_class)
    return Redis.from_pool(pool)


def add(streams: Redis, placed: Sequence[tuple[int, bytes]]) -> bool:
    """Add events to their shards' streams in this order, all or none, in one round trip.

    Returns whether a drain must be woken, because none is known to be awake. Raises redis.RedisError: then nothing was
    added or, if only the reply was lost, everything. It is harmless to add the same events again.
    """
    try:
        return try_to_add(streams, placed)
    except ReadOnlyError:  # nothing was added, and the next connection may lead to the new primary
        return try_to_add(streams, placed)


def try_to_add(streams: Redis, placed: Sequence[tuple[int, bytes]]) -> bool:
    """Add events as `add` does, but in one attempt."""
    with streams.pipeline(transaction=True) as pipeline:
        queue(pipeline, placed)
        return bool(pipeline.execute()[-1])


def add_once(streams: Redis, placed: Sequence[tuple[int, bytes]], delivery: str) -> bool:
    """Add the events of one delivery as `add` does, unless the same delivery was added within a day.

    Refs make a repeat harmless, but not for a revoke that was added before its grant.
    """
    key = delivery_key(delivery)

    def queue_unless_done(pipeline: Pipeline) -> None:
        done = pipeline.exists(key)
        pipeline.multi()
        if not done:
            queue(pipeline, placed)
            pipeline.set(key, 1, ex=DELIVERY_REMEMBERED_S)

    replies = streams.transaction(queue_unless_done, key)
    return bool(replies and replies[-2])


def queue(pipeline: Pipeline, placed: Sequence[tuple[int, bytes]]) -> None:
    """Queue the commands that add events and then claim the awake key."""
    for shard, raw in placed:
        pipeline.xadd(stream_of(shard), {"event": raw})
    pipeline.set(AWAKE, "producer", nx=True, px=AWAKE_MS)
