-- name: lock_schema
-- One migration at a time: the second waits here, and then finds everything done. No wait for a lock is endless,
-- as all who come later wait behind it.
SET LOCAL lock_timeout = '60s';
SELECT pg_advisory_xact_lock(hashtextextended('usage-feeds migrate', 0));

-- name: create_schema_migrations
-- dbmate's table, with a checksum that dbmate leaves null.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version varchar(128) PRIMARY KEY,
    checksum bytea
);
ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS checksum bytea;

-- name: read_applied
-- What was applied, with the checksums where we did it.
SELECT version, checksum FROM schema_migrations ORDER BY version;

-- name: insert_applied
-- One migration is applied; one that dbmate applied gets its checksum.
INSERT INTO schema_migrations (version, checksum) VALUES (%(version)s, %(checksum)s)
ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum;

-- name: insert_ledger
-- The facts of a new ledger.
INSERT INTO ledger (event_shards, expiry_grace_s, cursor_secret)
VALUES (%(event_shards)s, %(expiry_grace_s)s, %(cursor_secret)s);

-- name: update_ledger
-- The facts that were decided anew.
UPDATE ledger SET event_shards = %(event_shards)s, expiry_grace_s = %(expiry_grace_s)s;

-- name: insert_usage_kinds
-- New kinds, numbered on from those there are.
INSERT INTO usage_kinds (usage_kind, usage_number)
SELECT usage_kind, %(first_number)s + place - 1
FROM unnest(%(usage_kinds)s::text[]) WITH ORDINALITY AS added (usage_kind, place);

-- name: lock_offsets
-- Wait for the drains at work, and let no other begin before the commit.
SELECT shard FROM stream_offsets ORDER BY shard FOR UPDATE;

-- name: insert_offsets
-- One row for every shard.
INSERT INTO stream_offsets (shard)
SELECT shard FROM generate_series(0, %(event_shards)s - 1) AS shard
ON CONFLICT DO NOTHING;

-- name: delete_offsets
-- No row for a shard that is no more.
DELETE FROM stream_offsets WHERE shard >= %(event_shards)s;
