-- name: begin_reading
-- Begins a transaction that only reads. It takes a tenth of a page's time, so it is sent only
-- if the database or the role has another default: one statement reads one moment at any level, but a deferrable one
-- would wait, and SERIALIZABLE keeps notes of what it reads.
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: begin_writing
-- Begins a transaction that may write, whatever the default of database and role is.
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

-- name: bound_statement
-- Tells whether the server is a standby. Sets, for this transaction, the organisation whose rows the reader's role may
-- see, how long a statement may wait, and what a database or role may have changed. `feeds/database.sql` has the reasons.
-- (Values are sent in binary form, so their formats do not matter.)
SELECT
    pg_is_in_recovery() AS is_standby,
    set_config('usage_feeds.org_id', COALESCE(%(org_id)s::text, ''), true),
    set_config('search_path', quote_ident(%(schema)s::text) || ', pg_temp', true),
    set_config('statement_timeout', '2s', true),
    set_config('lock_timeout', '1s', true),
    set_config('row_security', 'on', true);

-- name: commit
-- Ends the transaction.
COMMIT;
