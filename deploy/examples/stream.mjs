// Add an event to its stream. It needs `npm install redis`, and Node 20.15, 22.2 or newer for `crc32`.
import { crc32 } from "node:zlib";
import { createClient } from "redis";

const EVENT_SHARDS = 8;

const event = { type: "usage", org_id: "org_a", usage_ref: "usage_3", usage_kind: "ai_usage", credits: 5 };
const shard = crc32(event.org_id) % EVENT_SHARDS;

const redis = await createClient({ url: process.env.REDIS_URL }).connect();
await redis.xAdd(`events:{${shard}}`, "*", { event: JSON.stringify(event) });
redis.destroy();
