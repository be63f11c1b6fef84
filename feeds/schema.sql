-- name: find_migrations
-- Whether this database ever saw a migration.
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: read_version
-- The last migration applied, or none.
SELECT max(version) FROM schema_migrations;

-- name: read_ledger
-- The facts of the ledger: one row once `migrate` has run.
SELECT epoch, event_shards, expiry_grace_s, cursor_secret FROM ledger;

-- name: read_usage_kinds
-- Every usage kind with its number, in the order of the numbers.
SELECT usage_kind, usage_number FROM usage_kinds ORDER BY usage_number;
