-- name: find_migrations
-- Whether any migration was ever applied to this database.
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: read_version
-- The version of the last applied migration, or NULL.
SELECT max(version) FROM schema_migrations;

-- name: read_ledger
-- The facts of the ledger: one row after `migrate` has run, none before.
SELECT epoch, event_shards, expiry_grace_s, cursor_secret FROM ledger;

-- name: read_usage_kinds
-- Every usage kind with its number, in the order of the numbers.
SELECT usage_kind, usage_number FROM usage_kinds ORDER BY usage_number;
