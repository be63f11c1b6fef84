-- name: bound_work
-- A scrape must not wait.
SELECT set_config('statement_timeout', '2s', false);

-- name: read_work
-- How many seconds ago a batch was last posted: none where none was yet.
SELECT GREATEST(extract(epoch FROM clock_timestamp() - NULLIF(max(moved_at), 'epoch')), 0)::float AS last_batch_s
FROM stream_offsets;

-- name: count_dead_letters
-- The dead letters by code.
SELECT code, count(*) FROM dead_letters GROUP BY code;
