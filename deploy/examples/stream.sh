#!/bin/sh
# Add an event to its stream. `org_a` is in shard 6: the CRC-32 of its name, modulo EVENT_SHARDS (8).
set -eu
event='{"type":"usage","org_id":"org_a","usage_ref":"usage_4","usage_kind":"ai_usage","credits":3}'
redis-cli --no-auth-warning -u "$REDIS_URL" XADD 'events:{6}' '*' event "$event"
