-- name: find_organisation
-- One organisation, with the numbers of its movements and grants.
SELECT org_no, counts[1], grants FROM organisations WHERE org_id = %(org_id)s;

-- name: read_balance
-- The remaining credits of an organisation's open grants: all, those that can be drawn now, and those of grants that start
-- later; and the next end of a grant. The sums are numeric: they may be larger than a bigint.
SELECT
    COALESCE(sum(remaining), 0) AS remaining,
    COALESCE(sum(remaining) FILTER (
        WHERE (effective_at IS NULL OR effective_at <= now()) AND (expires_at IS NULL OR expires_at > now())
    ), 0) AS drawable,
    COALESCE(sum(credits) FILTER (WHERE allot_position IS NULL), 0) AS pending,
    min(expires_at) FILTER (WHERE remaining > 0 AND expires_at > now()) AS next_expiry
FROM grants
WHERE org_no = %(org_no)s AND open;

-- name: list_grants
-- An organisation's grants: first the open ones, in draw order; then the others, newest first.
SELECT
    grant_ref,
    CASE
        WHEN open AND allot_position IS NULL THEN 'pending'
        WHEN open THEN 'open'
        WHEN revoked > 0 OR allot_position IS NULL THEN 'revoked'
        WHEN expired > 0 THEN 'expired'
        ELSE 'spent'
    END AS state,
    source, priority, credits, remaining, drawn, expired, revoked, effective_at, expires_at, revoke_reason
FROM grants
WHERE org_no = %(org_no)s
ORDER BY
    open DESC,
    CASE WHEN open THEN priority END,
    CASE WHEN open THEN expires_at END NULLS LAST,
    CASE WHEN open THEN effective_at END NULLS FIRST,
    CASE WHEN open THEN allot_position END NULLS LAST,
    grant_no DESC;
