-- name: begin_writing
-- Begins a transaction that may write, whatever the default of database and role is: under SERIALIZABLE drains would
-- fail in turn. A constraint that a host has added is checked at once, so that the event at fault is known.
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET CONSTRAINTS ALL IMMEDIATE;

-- name: begin_reading
-- Begins a transaction that only reads. It does not ask for the right to write, which a standby refuses.
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: set_own_settings
-- Sets, until the transaction ends, every setting on which a promise depends and which a database, a role or another
-- client of a pooler may have changed. A statement for a special purpose changes some of them afterwards.
-- `check_ledger` refuses what cannot be set: encodings other than UTF8, and session_replication_role = replica.
-- All other settings change only speed, the server's log or features that are not used:
-- * bytea_output is understood in both forms, and no value is an interval (intervalstyle).
-- * No statement holds `= NULL` (transform_null_equals).
-- * Nothing is prepared (plan_cache_mode). The function `read_page` has settings of its own.
SELECT
    -- Names mean the ledger's tables: those that the search path finds, or else those in the schema public. It stays
    -- unchanged if there is no ledger. A temporary table is never found first. (A function costs less than a
    -- subquery, and quotes the name.)
    set_config(
        'search_path',
        (pg_identify_object(
            'pg_class'::regclass, COALESCE(to_regclass('stream_offsets'), to_regclass('public.stream_offsets')), 0
        )).schema || ', pg_temp',
        true
    ),
    -- How values are read and written. Python compares two times of one zone by its clock, which shows one hour twice
    -- when summer ends: so times are in UTC.
    set_config('timezone', 'UTC', true),
    set_config('datestyle', 'ISO, YMD', true),
    set_config('extra_float_digits', '1', true),
    set_config('array_nulls', 'on', true),
    set_config('standard_conforming_strings', 'on', true), -- psycopg quotes arrays of bytes according to it
    -- What a statement may do. An error must not end the session: the batch is halved to find the event at fault.
    set_config('row_security', 'on', true),
    set_config('exit_on_error', 'off', true),
    -- Entries are deleted from the streams after the commit, so it must survive a crash. Stricter values stay.
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END,
    -- How long to wait.
    set_config('statement_timeout', '60s', true),
    set_config('lock_timeout', '10s', true),
    set_config('idle_in_transaction_session_timeout', '60s', true),
    CASE
        WHEN current_setting('server_version_num')::int >= 170000 THEN set_config('transaction_timeout', '0', true)
    END,
    -- How to find rows: by their indexes. A batch fits into this memory, so it needs no temporary file, which
    -- temp_file_limit may forbid.
    set_config('enable_indexscan', 'on', true),
    set_config('enable_nestloop', 'on', true),
    set_config('work_mem', '16MB', true),
    set_config('jit', 'off', true); -- before PostgreSQL 18 the cost penalty of a disabled plan triggers JIT
