-- name: read_health
-- When a batch was last posted (NULL before the first one), how many seconds ago, and the time; how many dead letters
-- there are: a million are enough to know, more would make the command slow; whether the server is a standby.
SELECT
    moved.at AS last_batch_at,
    CASE WHEN moved.at IS NOT NULL THEN GREATEST(extract(epoch FROM clock_timestamp() - moved.at), 0)::float END
        AS last_batch_s,
    (SELECT count(*) FROM (SELECT FROM dead_letters LIMIT 1000000) AS counted) AS dead_letters,
    clock_timestamp() AS now,
    pg_is_in_recovery() AS postgres_is_standby
FROM (SELECT NULLIF(max(moved_at), 'epoch') AS at FROM stream_offsets) AS moved;
