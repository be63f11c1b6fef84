-- name: bound_scrape
-- Limit each statement of a scrape, for this transaction: a scrape must not wait.
SELECT set_config('statement_timeout', '2s', true), set_config('lock_timeout', '1s', true);

-- name: read_last_batch_age
-- How many seconds ago a batch was last posted; NULL before the first one.
SELECT GREATEST(extract(epoch FROM clock_timestamp() - NULLIF(max(moved_at), 'epoch')), 0)::float AS last_batch_age_s
FROM stream_offsets;

-- name: count_dead_letters
-- The number of dead letters by code.
SELECT code, count(*) FROM dead_letters GROUP BY code;
