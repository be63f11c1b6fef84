-- name: bound_work
-- For this transaction: bounds on waiting, and plans that cannot go wrong on fresh tables, where without
-- statistics the planner scans what will soon be large. (Not in the connection's options: PgBouncer refuses those.)
-- Times in UTC: Python compares those of one zone by its clock, which shows an hour twice when summer ends.
SELECT
    set_config('timezone', 'UTC', true),
    set_config('statement_timeout', '30s', true),
    set_config('lock_timeout', '10s', true),
    set_config('idle_in_transaction_session_timeout', '60s', true),
    -- A process that hangs between the parts of a batch is not idle: on PostgreSQL 15 and 16 it holds its shard until TCP
    -- gives it up.
    CASE
        WHEN current_setting('server_version_num')::int >= 170000 THEN set_config('transaction_timeout', '60s', true)
    END,
    set_config('jit', 'off', true), -- before PostgreSQL 18 a plan that is switched off costs so much that it is compiled
    set_config('enable_seqscan', 'off', true),
    set_config('enable_sort', 'off', true),
    set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true);

-- name: find_buried
-- Which of these entries were buried before; by source, the digest decides.
SELECT d.stream, d.entry_id, d.digest
FROM unnest(%(streams)s::text[], %(entry_ids)s::text[]) AS e (stream, entry_id)
JOIN dead_letters AS d USING (stream, entry_id);

-- name: insert_organisations
-- Organisations that are new. Sorted, and before any lock is taken: two drains cannot wait for each other.
INSERT INTO organisations (org_id)
SELECT n.org_id
FROM unnest(%(org_ids)s::text[]) AS n (org_id)
WHERE NOT EXISTS (SELECT FROM organisations AS o WHERE o.org_id = n.org_id)
ORDER BY n.org_id COLLATE "C"
ON CONFLICT (org_id) DO NOTHING;

-- name: lock_organisations
-- The organisations' rows, locked in sorted order.
SELECT org_id, org_no, counts, grants, last_created_at, last_hash
FROM organisations
WHERE org_id = ANY(%(org_ids)s::text[])
ORDER BY org_id
FOR UPDATE;

-- name: read_grants
-- The open grants of the locked organisations, and those that the batch names, open or not.
SELECT
    org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
    remaining, drawn, expired, revoked, allot_position, open, revoke_reason
FROM grants
WHERE org_no = ANY(%(org_nos)s::bigint[]) AND open
UNION ALL
SELECT closed.*
FROM unnest(%(ref_org_nos)s::bigint[], %(grant_refs)s::text[]) AS r (org_no, grant_ref)
CROSS JOIN LATERAL (
    SELECT
        org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
        remaining, drawn, expired, revoked, allot_position, open, revoke_reason
    FROM grants AS g
    WHERE g.org_no = r.org_no AND g.grant_ref = r.grant_ref AND NOT g.open
    LIMIT 1 -- there is one at most; it keeps the planner from turning the join round
) AS closed;

-- name: read_usages
-- What is known of the usages that the batch names: a usage is the sum of its lines, two at most, of one usage kind.
-- In an order that movements_by_usage_ref alone has, so that it is used whatever the planner's statistics say: those of a
-- ledger that held grants alone made it read all lines of an organisation for each ref, and a batch took a second.
SELECT r.org_no, r.usage_ref, known.usage_number, known.credits
FROM unnest(%(ref_org_nos)s::bigint[], %(usage_refs)s::text[]) AS r (org_no, usage_ref)
CROSS JOIN LATERAL (
    SELECT max(line.usage_number) AS usage_number, (-sum(line.credits))::bigint AS credits
    FROM (
        SELECT m.usage_number, m.credits
        FROM movements AS m
        WHERE m.org_no = r.org_no
            AND ref_key(m.usage_ref) = ref_key(r.usage_ref)
            AND m.usage_ref = r.usage_ref
            AND m.usage_number IS NOT NULL
        ORDER BY m.kind NULLS FIRST
        LIMIT 2
    ) AS line
) AS known
WHERE known.credits IS NOT NULL;

-- name: read_clock
-- The clock that all decisions follow, read after the locks were granted. Sent by itself: the idle bound does not hold
-- after a pipeline, whose flush takes the session for busy.
SELECT clock_timestamp();

-- name: insert_movements
-- New lines, each chained to the one before it. (Not COPY, which tables with row-level security refuse; in the
-- pipeline it costs no more.)
INSERT INTO movements (
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, created_at,
    movement_id, org_no, usage_number, kind, usage_ref, hash, draws
)
SELECT
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, created_at,
    movement_id, org_no, usage_number, kind, usage_ref, decode(hash, 'hex'), draws
FROM unnest(
    %(positions)s::bigint[], %(kind_ordinals)s::bigint[], %(usage_ordinals)s::bigint[], %(kind_usage_ordinals)s::bigint[],
    %(credits)s::bigint[], %(created_ats)s::timestamptz[], %(movement_ids)s::uuid[], %(org_nos)s::integer[],
    %(usage_numbers)s::smallint[], %(kinds)s::"char"[], %(usage_refs)s::text[], %(hashes)s::text[], %(draws)s::text[]
) AS n (
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, created_at,
    movement_id, org_no, usage_number, kind, usage_ref, hash, draws
);

-- name: write_grants
-- Grants that are new or have changed; their content never does.
INSERT INTO grants (
    org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
    remaining, drawn, expired, revoked, allot_position, open, revoke_reason
)
SELECT *
FROM unnest(
    %(org_nos)s::bigint[], %(grant_nos)s::bigint[], %(grant_refs)s::text[], %(credits)s::bigint[], %(sources)s::text[],
    %(priorities)s::smallint[], %(effective_ats)s::timestamptz[], %(expires_ats)s::timestamptz[],
    %(remainings)s::bigint[], %(drawns)s::bigint[], %(expireds)s::bigint[], %(revokeds)s::bigint[],
    %(allot_positions)s::bigint[], %(opens)s::boolean[], %(revoke_reasons)s::text[]
)
ON CONFLICT (org_no, grant_no) DO UPDATE SET
    remaining = excluded.remaining,
    drawn = excluded.drawn,
    expired = excluded.expired,
    revoked = excluded.revoked,
    allot_position = excluded.allot_position,
    open = excluded.open,
    revoke_reason = excluded.revoke_reason;

-- name: write_organisations
-- The counts and the hash that the new lines have moved.
UPDATE organisations AS o
SET
    counts = n.counts::bigint[],
    grants = n.grants,
    last_created_at = n.last_created_at,
    last_hash = decode(n.last_hash, 'hex')
FROM unnest(
    %(org_nos)s::bigint[], %(counts)s::text[], %(grant_counts)s::bigint[], %(last_created_ats)s::timestamptz[],
    %(last_hashes)s::text[]
) AS n (org_no, counts, grants, last_created_at, last_hash)
WHERE o.org_no = n.org_no;
