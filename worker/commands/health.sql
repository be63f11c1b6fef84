-- name: read_health
-- When a batch was last posted, and how many dead letters there are.
SELECT
    (SELECT NULLIF(max(moved_at), 'epoch') FROM stream_offsets) AS last_batch_at,
    (SELECT count(*) FROM dead_letters) AS dead_letters;
