-- name: read_balance
-- What an organisation has now, with the ledger's epoch. It has one row, also for an unknown organisation. A grant that
-- has started counts as available although its allot may be late: a usage would draw it. Active and pending grants are
-- read apart, because each has an index of its own: closed grants, of which there may be very many, are not read. The last column is for how many
-- seconds all of this stays true if nothing is posted, NULL for ever.
WITH open_grants AS (
    SELECT g.source, g.expires_at, g.effective_at, g.remaining AS credits, true AS has_started
    FROM organisations AS o
    JOIN grants AS g ON g.org_no = o.org_no AND g.open AND g.allot_position IS NOT NULL
    WHERE o.org_id = %(org_id)s AND COALESCE(g.expires_at > now(), true)
    UNION ALL
    SELECT g.source, g.expires_at, g.effective_at, g.credits, g.effective_at <= now()
    FROM organisations AS o
    JOIN grants AS g ON g.org_no = o.org_no AND g.open AND g.allot_position IS NULL
    WHERE o.org_id = %(org_id)s AND COALESCE(g.expires_at > now(), true)
),

available AS (
    SELECT source, expires_at, credits FROM open_grants WHERE has_started
),

sums AS (
    SELECT
        COALESCE(sum(credits) FILTER (WHERE source = 'plan'), 0)::bigint AS plan,
        COALESCE(sum(credits) FILTER (WHERE source = 'promotion'), 0)::bigint AS promotion,
        min(expires_at) AS next_expiry
    FROM available
),

changes AS (
    SELECT min(CASE WHEN has_started THEN expires_at ELSE effective_at END) AS next_change FROM open_grants
)

SELECT
    l.epoch, COALESCE(o.revision, 0), COALESCE(o.counts[1], 0), COALESCE(-o.totals[4], 0), s.plan, s.promotion,
    (SELECT COALESCE(sum(credits), 0)::bigint FROM open_grants WHERE NOT has_started),
    s.next_expiry,
    (SELECT sum(a.credits)::bigint FROM available AS a WHERE a.expires_at = s.next_expiry),
    extract(epoch FROM c.next_change - now())::float8
FROM ledger AS l
CROSS JOIN sums AS s
CROSS JOIN changes AS c
LEFT JOIN organisations AS o ON o.org_id = %(org_id)s
WHERE l.single;

-- name: read_balance_at
-- What an organisation had at an earlier moment: the position of its last movement up to then, the balance after it, and
-- all overflow until then. One row; the position is 0 before the first movement.
SELECT
    p.position,
    COALESCE(m.balance, 0),
    (
        SELECT COALESCE(sum(
            -- an organisation's row may be older than a usage kind, and then has no count for it
            find_overflow(o.org_no, u.usage_number, p.position, COALESCE(o.counts[9 + 3 * u.usage_number], 0))
        ), 0)::bigint
        FROM usage_kinds AS u
    )
FROM (VALUES (true)) AS always
LEFT JOIN organisations AS o ON o.org_id = %(org_id)s
CROSS JOIN LATERAL (
    SELECT COALESCE(find_position(o.org_no, %(at)s::timestamptz, o.counts[1]), 0) AS position
    OFFSET 0 -- or it is searched for each use
) AS p
LEFT JOIN LATERAL (
    SELECT m.balance
    FROM movements AS m
    WHERE m.org_no = o.org_no AND m.position BETWEEN p.position AND p.position
    ORDER BY m.position
    LIMIT 1
) AS m ON true;
