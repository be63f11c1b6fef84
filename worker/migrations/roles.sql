-- The roles belong to the whole server and have no password. Operators grant them to the users of the processes.
-- All statements can be repeated. The rights on a new table are added here; the next `migrate --roles` grants them.

-- name: create_roles
-- Creates the worker's role and the reader's if they do not exist. The `migrate` of another database may be faster.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['usage_feeds_worker', 'usage_feeds_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO usage_feeds_worker, usage_feeds_reader', current_schema());
END
$$;

-- name: revoke_rights
-- Revokes all that earlier versions granted.
REVOKE ALL ON
    ledger, usage_kinds, schema_migrations, stream_offsets, organisations, movements, movement_labels, grants,
    dead_letters, api_keys, members
FROM usage_feeds_worker, usage_feeds_reader;
REVOKE ALL ON FUNCTION ref_key, read_page, find_position, find_overflow FROM usage_feeds_worker, usage_feeds_reader;

-- name: grant_worker_rights
-- The worker posts, and runs every command except `migrate`. It can add movements, but not change or remove them.
GRANT SELECT ON
    ledger, usage_kinds, schema_migrations, stream_offsets, organisations, movements, movement_labels, grants,
    dead_letters, api_keys, members
TO usage_feeds_worker;
GRANT UPDATE (epoch) ON ledger TO usage_feeds_worker;
GRANT UPDATE (last_entry_id, moved_at) ON stream_offsets TO usage_feeds_worker;
GRANT
    INSERT (org_id), UPDATE (counts, totals, grants, pending, revision, last_created_at, last_hash)
ON organisations TO usage_feeds_worker;
GRANT INSERT ON movements, movement_labels TO usage_feeds_worker;
GRANT
    INSERT,
    UPDATE (
        remaining, drawn, expired, revoked, allot_position, first_draw_position, last_draw_position, close_position, open,
        revoke_reason
    )
ON grants TO usage_feeds_worker;
GRANT INSERT, DELETE ON dead_letters TO usage_feeds_worker;
GRANT INSERT, UPDATE (revoked_at) ON api_keys TO usage_feeds_worker;
GRANT INSERT, UPDATE (role), DELETE ON members TO usage_feeds_worker;
GRANT EXECUTE ON FUNCTION ref_key, read_page, find_position, find_overflow TO usage_feeds_worker;

-- name: grant_reader_rights
-- The endpoint reads what its answers consist of, and records when a key was last used.
GRANT SELECT ON
    ledger, usage_kinds, schema_migrations, movements, movement_labels, grants, api_keys, members
TO usage_feeds_reader;
GRANT SELECT (org_no, org_id, counts, totals, grants, revision) ON organisations TO usage_feeds_reader;
GRANT UPDATE (last_used_at) ON api_keys TO usage_feeds_reader;
GRANT EXECUTE ON FUNCTION read_page, find_position, find_overflow TO usage_feeds_reader;

-- name: enable_row_security
-- The reader sees only the rows of the organisation that its transaction has named; before that it sees none.
ALTER TABLE organisations ENABLE ROW LEVEL SECURITY;
ALTER TABLE movements ENABLE ROW LEVEL SECURITY;
ALTER TABLE movement_labels ENABLE ROW LEVEL SECURITY;
ALTER TABLE grants ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS worker_sees_all ON organisations;
DROP POLICY IF EXISTS worker_sees_all ON movements;
DROP POLICY IF EXISTS worker_sees_all ON movement_labels;
DROP POLICY IF EXISTS worker_sees_all ON grants;
DROP POLICY IF EXISTS reader_sees_its_own ON organisations;
DROP POLICY IF EXISTS reader_sees_its_own ON movements;
DROP POLICY IF EXISTS reader_sees_its_own ON movement_labels;
DROP POLICY IF EXISTS reader_sees_its_own ON grants;
CREATE POLICY worker_sees_all ON organisations TO usage_feeds_worker USING (true);
CREATE POLICY worker_sees_all ON movements TO usage_feeds_worker USING (true);
CREATE POLICY worker_sees_all ON movement_labels TO usage_feeds_worker USING (true);
CREATE POLICY worker_sees_all ON grants TO usage_feeds_worker USING (true);
CREATE POLICY reader_sees_its_own ON organisations FOR SELECT TO usage_feeds_reader
USING (org_id = current_setting('usage_feeds.org_id', true));
CREATE POLICY reader_sees_its_own ON movements FOR SELECT TO usage_feeds_reader
USING (org_no = (SELECT o.org_no FROM organisations AS o WHERE o.org_id = current_setting('usage_feeds.org_id', true)));
CREATE POLICY reader_sees_its_own ON movement_labels FOR SELECT TO usage_feeds_reader
USING (org_no = (SELECT o.org_no FROM organisations AS o WHERE o.org_id = current_setting('usage_feeds.org_id', true)));
CREATE POLICY reader_sees_its_own ON grants FOR SELECT TO usage_feeds_reader
USING (org_no = (SELECT o.org_no FROM organisations AS o WHERE o.org_id = current_setting('usage_feeds.org_id', true)));
