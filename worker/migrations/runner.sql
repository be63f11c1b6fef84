-- name: lock_schema
-- One migration runs at a time: a second one waits here, and then has nothing to do. Every wait for a lock is bounded,
-- because all later statements on the table wait behind it. Statements may run for as long as a large ledger needs.
SET LOCAL lock_timeout = '60s';
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL default_table_access_method = heap; -- others have no row locks
SELECT pg_advisory_xact_lock(hashtextextended('usage-feeds migrate', 0));

-- name: find_schema
-- The schema in which tables are created, and whether only another program has migrations there.
SELECT
    schema,
    to_regclass(quote_ident(schema) || '.schema_migrations') IS NOT NULL
    AND to_regclass(quote_ident(schema) || '.stream_offsets') IS NULL
FROM (
    SELECT COALESCE(current_schema(), (SELECT nspname FROM pg_namespace WHERE nspname = 'public'))::text AS schema
) AS chosen;

-- name: use_schema
-- Find and create tables in this schema only.
SELECT set_config('search_path', quote_ident(%(schema)s::text) || ', pg_temp', true);

-- name: read_any_migration
-- One row if any migration is recorded.
SELECT 1 FROM schema_migrations LIMIT 1;

-- name: create_schema_migrations
-- dbmate's table, with a column that dbmate does not fill: the checksum.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version varchar(128) PRIMARY KEY,
    checksum bytea
);
ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS checksum bytea;

-- name: read_applied
-- The applied migrations. The checksum is NULL if dbmate applied the migration.
SELECT version, checksum FROM schema_migrations ORDER BY version;

-- name: insert_applied
-- Records an applied migration, or the checksum of one that dbmate applied.
INSERT INTO schema_migrations (version, checksum) VALUES (%(version)s, %(checksum)s)
ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum;

-- name: insert_ledger
-- The facts of a new ledger.
INSERT INTO ledger (event_shards, expiry_grace_s, cursor_secret)
VALUES (%(event_shards)s, %(expiry_grace_s)s, %(cursor_secret)s);

-- name: update_ledger
-- Changes facts of the ledger.
UPDATE ledger SET event_shards = %(event_shards)s, expiry_grace_s = %(expiry_grace_s)s;

-- name: insert_usage_kinds
-- New kinds, with the numbers that follow the existing ones.
INSERT INTO usage_kinds (usage_kind, usage_number)
SELECT usage_kind, %(first_number)s + place - 1
FROM unnest(%(usage_kinds)s::text[]) WITH ORDINALITY AS added (usage_kind, place);

-- name: lock_offsets
-- Waits until all running drains end; no other drain begins before the commit.
SELECT shard FROM stream_offsets ORDER BY shard FOR UPDATE;

-- name: insert_offsets
-- One row for every shard.
INSERT INTO stream_offsets (shard)
SELECT shard FROM generate_series(0, %(event_shards)s - 1) AS shard
ON CONFLICT DO NOTHING;

-- name: delete_offsets
-- Removes the rows of shards that no longer exist.
DELETE FROM stream_offsets WHERE shard >= %(event_shards)s;
