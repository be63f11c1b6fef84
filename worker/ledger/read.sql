-- name: bound_work
-- Settings of this transaction: limits on waiting, and plans that stay good on fresh tables. Without statistics the
-- planner would scan tables that will soon be large. `feeds/database.sql` has set all others.
SELECT
    set_config('statement_timeout', '30s', true),
    set_config('lock_timeout', '10s', true),
    set_config('idle_in_transaction_session_timeout', '60s', true),
    -- A process that hangs between the parts of a batch is not idle. On PostgreSQL 15 and 16 it holds its shard until
    -- TCP gives the connection up.
    CASE
        WHEN current_setting('server_version_num')::int >= 170000 THEN set_config('transaction_timeout', '60s', true)
    END,
    set_config('enable_seqscan', 'off', true),
    set_config('enable_sort', 'off', true),
    set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true);

-- name: find_buried
-- The dead letters that came from these entries. After Redis was wiped an id may return: the caller compares digests.
SELECT d.stream, d.entry_id, d.digest
FROM unnest(%(streams)s::text[], %(entry_ids)s::text[]) AS e (stream, entry_id)
JOIN dead_letters AS d USING (stream, entry_id);

-- name: insert_organisations
-- Insert the organisations that are new. They are sorted, and no lock is held yet, so two drains cannot deadlock.
INSERT INTO organisations (org_id)
SELECT n.org_id
FROM unnest(%(org_ids)s::text[]) AS n (org_id)
WHERE NOT EXISTS (SELECT FROM organisations AS o WHERE o.org_id = n.org_id)
ORDER BY n.org_id COLLATE "C"
ON CONFLICT (org_id) DO NOTHING;

-- name: lock_organisations
-- Lock the organisations' rows in sorted order, and read them.
SELECT org_id, org_no, counts, totals, last_hash, grants AS grant_count, pending, revision, last_created_at
FROM organisations
WHERE org_id = ANY(%(org_ids)s::text[])
ORDER BY org_id
FOR UPDATE;

-- name: read_grants
-- The grants of the locked organisations whose start or end has come, and those that the batch names, open or not. An
-- organisation may have very many open grants: the others are not read.
SELECT due.*
FROM unnest(%(org_nos)s::integer[]) AS o (org_no)
CROSS JOIN LATERAL (
    SELECT
        org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
        remaining, drawn, expired, revoked, allot_position, first_draw_position, last_draw_position, close_position, open,
        revoke_reason, labels
    FROM grants AS g
    WHERE g.org_no = o.org_no AND g.open AND g.allot_position IS NULL
        AND g.effective_at <= %(now)s::timestamptz
    UNION ALL
    SELECT
        org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
        remaining, drawn, expired, revoked, allot_position, first_draw_position, last_draw_position, close_position, open,
        revoke_reason, labels
    FROM grants AS g
    WHERE g.org_no = o.org_no AND g.open AND g.allot_position IS NOT NULL
        AND g.expires_at <= %(ended_at)s::timestamptz
) AS due
UNION ALL
SELECT named.*
FROM unnest(%(ref_org_nos)s::integer[], %(grant_refs)s::text[]) AS r (org_no, grant_ref)
CROSS JOIN LATERAL (
    SELECT
        org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
        remaining, drawn, expired, revoked, allot_position, first_draw_position, last_draw_position, close_position, open,
        revoke_reason, labels
    FROM grants AS g
    WHERE g.org_no = r.org_no AND g.grant_ref = r.grant_ref
    LIMIT 1 -- there is at most one; the limit stops the planner from reversing the join
) AS named;

-- name: read_drawable
-- The active grants that come after a grant in draw order, and were valid at some time of a span. The range of the
-- index begins at that grant, so reading on costs what is read, however many an organisation has.
SELECT next.*
FROM unnest(
    %(org_nos)s::integer[], %(after)s::bigint[], %(first_usage_at)s::timestamptz[], %(last_usage_at)s::timestamptz[]
) AS o (org_no, after, first_usage_at, last_usage_at)
LEFT JOIN grants AS l ON l.org_no = o.org_no AND l.grant_no = o.after
CROSS JOIN LATERAL (
    SELECT
        org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
        remaining, drawn, expired, revoked, allot_position, first_draw_position, last_draw_position, close_position, open,
        revoke_reason, labels
    FROM grants AS g
    WHERE g.org_no = o.org_no AND g.open AND g.allot_position IS NOT NULL
        AND (g.priority, COALESCE(g.expires_at, 'infinity'), COALESCE(g.effective_at, '-infinity'), g.allot_position)
            > (
                COALESCE(l.priority, -1::smallint), COALESCE(l.expires_at, 'infinity'),
                COALESCE(l.effective_at, '-infinity'), COALESCE(l.allot_position, 0)
            )
        AND COALESCE(g.effective_at, '-infinity') <= o.last_usage_at
        AND COALESCE(g.expires_at, 'infinity') > o.first_usage_at
    ORDER BY
        g.priority, COALESCE(g.expires_at, 'infinity'), COALESCE(g.effective_at, '-infinity'), g.allot_position
    LIMIT %(most)s
) AS next;

-- name: read_usages
-- The usage kind and the credits of those usages of the batch that are posted. A usage is the sum of its movements: at
-- most two, of one usage kind. Only movements_by_usage_ref has the order below, so the planner uses it with any
-- statistics. Without the order, and with the statistics of a ledger that held only grants, it read all movements of an
-- organisation for each ref, and a batch took a second.
SELECT r.org_no, r.usage_ref, known.usage_number, known.credits
FROM unnest(%(ref_org_nos)s::bigint[], %(usage_refs)s::text[]) AS r (org_no, usage_ref)
CROSS JOIN LATERAL (
    SELECT max(movement.usage_number) AS usage_number, (-sum(movement.credits))::bigint AS credits
    FROM (
        SELECT m.usage_number, m.credits
        FROM movements AS m
        WHERE m.org_no = r.org_no
            AND ref_key(m.usage_ref) = ref_key(r.usage_ref)
            AND m.usage_ref = r.usage_ref
            AND m.usage_number IS NOT NULL
        ORDER BY m.kind NULLS FIRST
        LIMIT 2
    ) AS movement
) AS known
WHERE known.credits IS NOT NULL;

-- name: read_clock
-- The clock that all decisions follow, read after the locks were granted.
SELECT clock_timestamp();
