-- In both queries a grant's state, and what it holds, follow the clock: its movement may be late. `remaining` and `revoked`
-- count for grants without an allot too, so that credits = drawn + expired + revoked + remaining. If there is no grant at
-- the place, one row is returned in which only the total is set.

-- name: read_grants
-- Grants of an organisation by their numbers, which have no gaps: newest first, leaving out the `skip` newest, those above
-- the number `ceiling` and those up to `floor`; and how many there are in all, and how many are newer.
SELECT
    COALESCE(o.grants, 0), o.grants - g.grant_no, g.grant_no, g.grant_ref, g.source, g.priority, g.credits, g.drawn,
    g.expired, g.revoked, g.remaining, g.open, g.allot_position, g.effective_at, g.expires_at, g.labels, now()
FROM ledger AS l
LEFT JOIN (
    SELECT org_no, grants, newest, GREATEST(newest - %(limit)s::bigint, %(floor)s::bigint) AS below
    FROM (
        SELECT org_no, grants, LEAST(grants - %(skip)s::bigint, %(ceiling)s::bigint) AS newest
        FROM organisations
        WHERE org_id = %(org_id)s
    ) AS places
    OFFSET 0 -- so that the bounds are columns: with row-level security an expression does not bound the scan
) AS o ON true
LEFT JOIN LATERAL (
    SELECT g.*
    FROM grants AS g
    WHERE g.org_no = o.org_no AND g.grant_no <= o.newest AND g.grant_no > o.below
    ORDER BY g.grant_no DESC -- only the primary key has this order, so the planner uses it with any statistics
    LIMIT %(limit)s::bigint
) AS g ON true
WHERE l.single
ORDER BY g.grant_no DESC;

-- name: read_open_grants
-- The same of the grants that are pending or active. They are numbered with gaps, so all of them are read and counted,
-- each kind by its own index. If `upwards`, the oldest above `floor` are returned.
WITH found AS (
    SELECT g.*
    FROM organisations AS o
    JOIN grants AS g ON g.org_no = o.org_no AND g.open AND g.allot_position IS NOT NULL
    WHERE o.org_id = %(org_id)s
    UNION ALL
    SELECT g.*
    FROM organisations AS o
    JOIN grants AS g ON g.org_no = o.org_no AND g.open AND g.allot_position IS NULL
    WHERE o.org_id = %(org_id)s
),

open_grants AS (
    SELECT *, count(*) OVER () AS total, row_number() OVER (ORDER BY grant_no DESC) - 1 AS newer
    FROM found
    WHERE COALESCE(expires_at > now(), true)
),

chosen AS (
    SELECT *
    FROM open_grants
    WHERE newer >= %(skip)s::bigint AND grant_no <= %(ceiling)s::bigint AND grant_no > %(floor)s::bigint
    ORDER BY CASE WHEN %(upwards)s::boolean THEN grant_no ELSE -grant_no END
    LIMIT %(limit)s::bigint
)

SELECT
    COALESCE((SELECT total FROM open_grants LIMIT 1), 0), g.newer, g.grant_no, g.grant_ref, g.source, g.priority,
    g.credits, g.drawn, g.expired, g.revoked, g.remaining, g.open, g.allot_position, g.effective_at, g.expires_at,
    g.labels, now()
FROM ledger AS l
LEFT JOIN chosen AS g ON true
WHERE l.single
ORDER BY g.grant_no DESC;
