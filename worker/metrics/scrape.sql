-- name: bound_scrape
-- Limit each statement of a scrape, for this transaction: a scrape must not wait. Dead letters are counted by their
-- index: the planner would read the whole table for each code, also for a rare one.
SELECT
    set_config('statement_timeout', '2s', true),
    set_config('lock_timeout', '1s', true),
    set_config('enable_seqscan', 'off', true);

-- name: read_last_batch_age
-- How many seconds ago a batch was last posted; NULL before the first one.
SELECT GREATEST(extract(epoch FROM clock_timestamp() - NULLIF(max(moved_at), 'epoch')), 0)::float AS last_batch_age_s
FROM stream_offsets;

-- name: count_dead_letters
-- The number of dead letters of each code. A million of a code are enough to know: more would make a scrape slow.
SELECT c.code, (SELECT count(*) FROM (SELECT FROM dead_letters AS d WHERE d.code = c.code LIMIT 1000000) AS counted)
FROM unnest(%(codes)s::text[]) AS c (code);
