-- name: lock_offsets
-- The offsets of those shards that no other drain holds, whether they moved within the last second, and the time.
SELECT
    shard,
    last_entry_id,
    moved_at > clock_timestamp() - interval '1 second' AND moved_at <= clock_timestamp() AS moved_recently,
    clock_timestamp() AS now
FROM stream_offsets
WHERE shard = ANY(%(shards)s)
FOR UPDATE SKIP LOCKED;

-- name: move_offsets
-- The last entry that was posted of each shard: a hint for the next drain, never proof of posting.
UPDATE stream_offsets AS o
SET last_entry_id = n.last_entry_id, moved_at = clock_timestamp()
FROM unnest(%(shards)s::integer[], %(last_entry_ids)s::text[]) AS n (shard, last_entry_id)
WHERE o.shard = n.shard;
