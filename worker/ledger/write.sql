-- The queries that write rows take arrays, each named like the column that it fills.

-- name: insert_movements
-- Insert new movements. (COPY is refused by tables with row-level security, and inside the pipeline it is not faster.)
INSERT INTO movements (
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, created_at,
    movement_id, org_no, usage_number, kind, usage_ref, hash, draws
)
SELECT
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, created_at,
    movement_id, org_no, usage_number, kind, usage_ref, decode(hash, 'hex'), draws
FROM unnest(
    %(position)s::bigint[], %(kind_ordinal)s::bigint[], %(usage_ordinal)s::bigint[], %(kind_usage_ordinal)s::bigint[],
    %(credits)s::bigint[], %(created_at)s::timestamptz[], %(movement_id)s::uuid[], %(org_no)s::integer[],
    %(usage_number)s::smallint[], %(kind)s::"char"[], %(usage_ref)s::text[], %(hash)s::text[], %(draws)s::text[]
) AS n (
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, created_at,
    movement_id, org_no, usage_number, kind, usage_ref, hash, draws
);

-- name: write_grants
-- Insert new grants and update those that have changed. What their events said never changes.
INSERT INTO grants (
    org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
    remaining, drawn, expired, revoked, allot_position, open, revoke_reason
)
SELECT *
FROM unnest(
    %(org_no)s::bigint[], %(grant_no)s::bigint[], %(grant_ref)s::text[], %(credits)s::bigint[], %(source)s::text[],
    %(priority)s::smallint[], %(effective_at)s::timestamptz[], %(expires_at)s::timestamptz[],
    %(remaining)s::bigint[], %(drawn)s::bigint[], %(expired)s::bigint[], %(revoked)s::bigint[],
    %(allot_position)s::bigint[], %(open)s::boolean[], %(revoke_reason)s::text[]
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
-- Update what the new movements have changed: counts, time and hash of the newest movement.
UPDATE organisations AS o
SET
    counts = n.counts::bigint[],
    grants = n.grants,
    last_created_at = n.last_created_at,
    last_hash = decode(n.last_hash, 'hex')
FROM unnest(
    %(org_no)s::bigint[], %(counts)s::text[], %(grants)s::bigint[], %(last_created_at)s::timestamptz[],
    %(last_hash)s::text[]
) AS n (org_no, counts, grants, last_created_at, last_hash)
WHERE o.org_no = n.org_no;
