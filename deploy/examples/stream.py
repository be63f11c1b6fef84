"""Add an event to its stream, with redis-py only."""  # noqa: INP001 -- a script

import json
import os
import zlib

from redis import Redis

EVENT_SHARDS = 8

event = {"type": "usage", "org_id": "org_a", "usage_ref": "usage_1", "usage_kind": "ai_usage", "credits": 5}
shard = zlib.crc32(event["org_id"].encode()) % EVENT_SHARDS

with Redis.from_url(os.environ["REDIS_URL"]) as redis:
    redis.xadd(f"events:{{{shard}}}", {"event": json.dumps(event)})
