-- name: read_health
-- When a batch was last posted (NULL before the first one), how many seconds ago, how many dead letters there are, and the time.
SELECT
    moved.at AS last_batch_at,
    CASE WHEN moved.at IS NOT NULL THEN GREATEST(extract(epoch FROM clock_timestamp() - moved.at), 0)::float END
        AS last_batch_s,
    (SELECT count(*) FROM dead_letters) AS dead_letters,
    clock_timestamp() AS now
FROM (SELECT NULLIF(max(moved_at), 'epoch') AS at FROM stream_offsets) AS moved;
