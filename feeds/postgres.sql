-- name: bound_statement
-- Sets, for this transaction, how long a statement may wait, and the organisation whose rows the reader's role may see.
SELECT
    set_config('usage_feeds.org_id', COALESCE(%(org_id)s::text, ''), true),
    set_config('statement_timeout', '2s', true),
    set_config('lock_timeout', '1s', true);
