-- name: read_surroundings
-- Settings that this program cannot change for its own transactions.
SELECT current_setting('server_encoding'), current_setting('session_replication_role');

-- name: read_defaults
-- The schema that holds the ledger, and the default isolation level of database and role.
SELECT current_schema(), current_setting('default_transaction_isolation');

-- name: find_migrations
-- Whether any migration of ours was ever applied (other programs have a table schema_migrations too), and whether it was
-- by a version whose movements had stored ids.
SELECT
    to_regclass('stream_offsets') IS NOT NULL AND to_regclass('schema_migrations') IS NOT NULL,
    EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('movements') AND attname = 'movement_id' AND NOT attisdropped
    );

-- name: read_version
-- The version of the last applied migration, or NULL.
SELECT max(version) FROM schema_migrations;

-- name: read_ledger
-- The facts of the ledger: one row after `migrate` has run, none before.
SELECT epoch, event_shards, expiry_grace_s, cursor_secret FROM ledger;

-- name: read_usage_kinds
-- Every usage kind with its number, in the order of the numbers.
SELECT usage_kind, usage_number FROM usage_kinds ORDER BY usage_number;
