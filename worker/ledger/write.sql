-- The queries that write rows take arrays, each named like the column that it fills.

-- name: insert_movements
-- Insert new movements. (COPY is refused by tables with row-level security, and inside the pipeline it is not faster.)
INSERT INTO movements (
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, balance, total, created_at,
    org_no, usage_number, kind, usage_ref, hash, draws
)
SELECT
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, balance, total, created_at,
    org_no, usage_number, kind, usage_ref, decode(hash, 'hex'), draws
FROM unnest(
    %(position)s::bigint[], %(kind_ordinal)s::bigint[], %(usage_ordinal)s::bigint[], %(kind_usage_ordinal)s::bigint[],
    %(credits)s::bigint[], %(balance)s::bigint[], %(total)s::bigint[], %(created_at)s::timestamptz[],
    %(org_no)s::integer[], %(usage_number)s::smallint[], %(kind)s::"char"[], %(usage_ref)s::text[], %(hash)s::text[],
    %(draws)s::text[]
) AS n (
    position, kind_ordinal, usage_ordinal, kind_usage_ordinal, credits, balance, total, created_at,
    org_no, usage_number, kind, usage_ref, hash, draws
);

-- name: insert_labels
-- Insert the labels of new movements.
INSERT INTO movement_labels (org_no, position, labels)
SELECT * FROM unnest(%(org_no)s::integer[], %(position)s::bigint[], %(labels)s::text[]);

-- name: write_grants
-- Insert new grants and update those that have changed. What their events said never changes.
INSERT INTO grants (
    org_no, grant_no, grant_ref, credits, source, priority, effective_at, expires_at,
    remaining, drawn, expired, revoked, allot_position, first_draw_position, last_draw_position, close_position, open,
    revoke_reason, labels
)
SELECT *
FROM unnest(
    %(org_no)s::bigint[], %(grant_no)s::bigint[], %(grant_ref)s::text[], %(credits)s::bigint[], %(source)s::text[],
    %(priority)s::smallint[], %(effective_at)s::timestamptz[], %(expires_at)s::timestamptz[],
    %(remaining)s::bigint[], %(drawn)s::bigint[], %(expired)s::bigint[], %(revoked)s::bigint[],
    %(allot_position)s::bigint[], %(first_draw_position)s::bigint[], %(last_draw_position)s::bigint[],
    %(close_position)s::bigint[], %(open)s::boolean[], %(revoke_reason)s::text[], %(labels)s::text[]
)
ON CONFLICT (org_no, grant_no) DO UPDATE SET
    remaining = excluded.remaining,
    drawn = excluded.drawn,
    expired = excluded.expired,
    revoked = excluded.revoked,
    allot_position = excluded.allot_position,
    first_draw_position = excluded.first_draw_position,
    last_draw_position = excluded.last_draw_position,
    close_position = excluded.close_position,
    open = excluded.open,
    revoke_reason = excluded.revoke_reason;

-- name: write_organisations
-- Update what the new movements and grants have changed.
UPDATE organisations AS o
SET
    counts = n.counts::bigint[],
    totals = n.totals::bigint[],
    grants = n.grants,
    pending = n.pending,
    revision = n.revision,
    last_created_at = n.last_created_at,
    last_hash = decode(n.last_hash, 'hex')
FROM unnest(
    %(org_no)s::bigint[], %(counts)s::text[], %(totals)s::text[], %(grants)s::bigint[], %(pending)s::bigint[],
    %(revision)s::bigint[],    %(last_created_at)s::timestamptz[], %(last_hash)s::text[]
) AS n (org_no, counts, totals, grants, pending, revision, last_created_at, last_hash)
WHERE o.org_no = n.org_no;
