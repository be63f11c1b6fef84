-- Every query takes a range of organisations, first_org to last_org, and runs in one snapshot. All but the first
-- return findings: org_no, rule, place, expected, found. What a unique index promises is taken as given.

-- name: begin_snapshot
-- One moment for all queries; memory to sort in; lines are many and narrow, worth sorting on every core.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL work_mem = '256MB';
SET LOCAL jit = off;
SET LOCAL parallel_tuple_cost = 0.005;

-- name: count_checked
-- How much there is to check: organisations, movements, grants, by the organisations' own counts.
SELECT count(*), COALESCE(sum(counts[1]), 0)::bigint, COALESCE(sum(grants), 0)::bigint
FROM organisations
WHERE org_no BETWEEN %(first_org)s AND %(last_org)s;

-- name: find_misplaced
-- Positions and the ordinals of kinds without gaps, in the same order; times that never decrease. The first of each.
SELECT DISTINCT ON (org_no, rule) org_no, rule, 'position ' || position AS place, expected, found
FROM (
    SELECT
        org_no, position, kind_ordinal, created_at,
        lag(position, 1, 0::bigint) OVER by_position + 1 AS next_position,
        lag(created_at) OVER by_position AS last_created_at,
        CASE kind
            WHEN 'allot' THEN count(*) FILTER (WHERE kind = 'allot') OVER by_position
            WHEN 'consume' THEN count(*) FILTER (WHERE kind = 'consume') OVER by_position
            WHEN 'overflow' THEN count(*) FILTER (WHERE kind = 'overflow') OVER by_position
            WHEN 'expire' THEN count(*) FILTER (WHERE kind = 'expire') OVER by_position
            WHEN 'revoke' THEN count(*) FILTER (WHERE kind = 'revoke') OVER by_position
        END AS next_kind_ordinal
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    WINDOW by_position AS (PARTITION BY org_no ORDER BY position ROWS UNBOUNDED PRECEDING)
) AS placed
CROSS JOIN LATERAL (
    VALUES
        ('position', position <> next_position, next_position::text, position::text),
        ('kind_ordinal', kind_ordinal <> next_kind_ordinal, next_kind_ordinal::text, kind_ordinal::text),
        ('created_at', created_at < last_created_at, 'not before ' || last_created_at, created_at::text)
) AS checked (rule, broken, expected, found)
WHERE (position <> next_position OR kind_ordinal <> next_kind_ordinal OR created_at < last_created_at) AND broken
ORDER BY org_no, rule, position;

-- name: find_misplaced_usage
-- The ordinals of usage kinds without gaps, in the order of positions. The first of each.
SELECT DISTINCT ON (org_no, rule, usage_number) org_no, rule, 'position ' || position AS place, expected, found
FROM (
    SELECT
        org_no, position, usage_number, usage_ordinal, kind_usage_ordinal,
        row_number() OVER by_position AS next_usage_ordinal,
        CASE kind
            WHEN 'consume' THEN count(*) FILTER (WHERE kind = 'consume') OVER by_position
            ELSE count(*) FILTER (WHERE kind <> 'consume') OVER by_position
        END AS next_kind_usage_ordinal
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND usage_number IS NOT NULL
    WINDOW by_position AS (PARTITION BY org_no, usage_number ORDER BY position ROWS UNBOUNDED PRECEDING)
) AS placed
CROSS JOIN LATERAL (
    VALUES
        ('usage_ordinal', usage_ordinal <> next_usage_ordinal, next_usage_ordinal, usage_ordinal),
        (
            'kind_usage_ordinal', kind_usage_ordinal <> next_kind_usage_ordinal,
            next_kind_usage_ordinal, kind_usage_ordinal
        )
) AS checked (rule, broken, expected, found)
WHERE (usage_ordinal <> next_usage_ordinal OR kind_usage_ordinal <> next_kind_usage_ordinal) AND broken
ORDER BY org_no, rule, usage_number, position;

-- name: find_torn_usages
-- An overflow is written directly after its usage's consume, with the same usage kind.
SELECT
    org_no, 'overflow_follows_consume' AS rule, 'usage ' || usage_ref AS place,
    format('position %%s, usage kind %%s', consume.position + 1, consume.usage_number) AS expected,
    format('position %%s, usage kind %%s', overflow.position, overflow.usage_number) AS found
FROM movements AS overflow
JOIN movements AS consume USING (org_no, usage_ref)
WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    AND consume.org_no BETWEEN %(first_org)s AND %(last_org)s
    AND overflow.kind = 'overflow'
    AND consume.kind = 'consume'
    AND (overflow.position <> consume.position + 1 OR overflow.usage_number <> consume.usage_number);

-- name: find_wrong_draws
-- The draws of a consume are pairs of a grant and a positive number of credits, and sum to what was consumed.
SELECT
    org_no, 'draws' AS rule, 'position ' || position AS place,
    format('draws that sum to %%s', -credits) AS expected, draws::text AS found
FROM (
    SELECT
        org_no, position, credits, draws,
        CASE
            WHEN array_ndims(draws) IS DISTINCT FROM 2 OR array_length(draws, 2) <> 2 THEN NULL
            WHEN array_length(draws, 1) = 1 THEN draws[1][2]
            ELSE (SELECT CASE WHEN min(drawn) > 0 THEN sum(drawn) END FROM unnest(draws[:][2:2]) AS drawn)
        END AS drawn
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND kind = 'consume'
) AS consumes
WHERE drawn IS DISTINCT FROM -credits;

-- name: find_wrong_grants
-- Every grant against its own lines and against the draws from it.
WITH lines AS (
    SELECT
        org_no, usage_ref AS grant_ref,
        count(*) FILTER (WHERE kind = 'allot') AS allots,
        min(position) FILTER (WHERE kind = 'allot') AS allotted_at,
        COALESCE(sum(credits) FILTER (WHERE kind = 'allot'), 0) AS allotted,
        COALESCE(-sum(credits) FILTER (WHERE kind = 'expire'), 0) AS expired,
        COALESCE(-sum(credits) FILTER (WHERE kind = 'revoke'), 0) AS revoked,
        count(*) FILTER (WHERE kind <> 'allot') AS ends,
        min(position) FILTER (WHERE kind <> 'allot') AS ended_at
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND usage_number IS NULL
    GROUP BY org_no, usage_ref
),

draws AS (
    SELECT org_no, grant_no, sum(drawn) AS drawn, min(position) AS first_at, max(position) AS last_at
    FROM (
        SELECT org_no, position, draws[1][1] AS grant_no, draws[1][2] AS drawn
        FROM movements
        WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND kind = 'consume'
        UNION ALL
        SELECT org_no, position, unnest(draws[2:][1:1]), unnest(draws[2:][2:2])
        FROM movements
        WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND kind = 'consume' AND array_length(draws, 1) > 1
    ) AS single_draws
    GROUP BY org_no, grant_no
),

known AS (
    SELECT *, true AS is_known, row_number() OVER (PARTITION BY org_no ORDER BY grant_no) AS next_grant_no
    FROM grants
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
)

SELECT
    org_no, rule, COALESCE('grant ' || grant_ref, 'grant number ' || grant_no) AS place, expected, found
FROM known
FULL JOIN lines USING (org_no, grant_ref)
FULL JOIN draws USING (org_no, grant_no)
CROSS JOIN LATERAL (
    SELECT 'grant_is_known' AS rule, 'a grant' AS expected, 'only lines or draws that name it' AS found
    WHERE is_known IS NULL
    UNION ALL
    SELECT 'grant_number', next_grant_no::text, grant_no::text
    WHERE grant_no <> next_grant_no
    UNION ALL
    SELECT
        'grant_sum', known.credits::text,
        format(
            '%%s drawn + %%s expired + %%s revoked + %%s remaining', known.drawn, known.expired, known.revoked, remaining
        )
    WHERE allot_position IS NOT NULL AND credits <> known.drawn + known.expired + known.revoked + remaining
    UNION ALL
    SELECT 'grant_drawn', COALESCE(draws.drawn, 0)::text, known.drawn::text
    WHERE known.drawn <> COALESCE(draws.drawn, 0)
    UNION ALL
    SELECT 'grant_expired', COALESCE(lines.expired, 0)::text, known.expired::text
    WHERE known.expired <> COALESCE(lines.expired, 0)
    UNION ALL
    SELECT 'grant_revoked', COALESCE(lines.revoked, 0)::text, known.revoked::text
    WHERE known.revoked <> COALESCE(lines.revoked, 0)
    UNION ALL
    SELECT
        'grant_allot',
        format('one allot line of %%s credits at position %%s', credits, allot_position),
        format('%%s allot lines, of %%s credits, the first at position %%s', allots, allotted, allotted_at)
    WHERE allot_position IS NOT NULL
        AND (allots, allotted_at, allotted) IS DISTINCT FROM (1, allot_position, credits)
    UNION ALL
    SELECT 'grant_allot', 'no allot line', format('%%s allot lines', allots)
    WHERE is_known AND allot_position IS NULL AND allots > 0
    UNION ALL
    SELECT 'grant_end', CASE WHEN open THEN 'no end line' ELSE 'one end line at most' END, ends::text
    WHERE ends > (NOT open)::int
    UNION ALL
    SELECT
        'grant_order', 'allot, draws, end',
        format('allot at %%s, draws at %%s to %%s, end at %%s', allotted_at, first_at, last_at, ended_at)
    WHERE first_at < allotted_at OR last_at > ended_at OR ended_at < allotted_at
) AS checked;

-- name: find_wrong_totals
-- Every count of an organisation's row against its lines; its balance against its grants.
WITH tallies AS MATERIALIZED (
    SELECT
        org_no, kind, usage_number, count(*) AS lines, sum(credits) AS credits, max(created_at) AS last_created_at
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    GROUP BY org_no, kind, usage_number
),

feeds AS (
    SELECT org_no, feed, sum(lines) AS lines
    FROM tallies
    CROSS JOIN LATERAL (
        VALUES
            (0),
            (array_position(enum_range(NULL::movement_kind), kind)),
            (6 + 3 * usage_number),
            (7 + 3 * usage_number + (kind = 'overflow')::int)
    ) AS belongs (feed)
    WHERE feed IS NOT NULL
    GROUP BY org_no, feed
),

counted AS (
    SELECT org_no, place - 1 AS feed, lines
    FROM organisations
    CROSS JOIN LATERAL unnest(counts) WITH ORDINALITY AS c (lines, place)
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
),

balances AS (
    SELECT org_no, sum(credits) FILTER (WHERE kind <> 'overflow') AS credits, max(last_created_at) AS last_created_at
    FROM tallies
    GROUP BY org_no
),

holdings AS (
    SELECT org_no, count(*) AS grants, sum(remaining) FILTER (WHERE allot_position IS NOT NULL) AS remaining
    FROM grants
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    GROUP BY org_no
),

known AS (
    SELECT org_no, org_id, grants, last_created_at
    FROM organisations
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
)

SELECT
    org_no, 'count' AS rule, 'feed ' || feed AS place,
    COALESCE(feeds.lines, 0)::text AS expected, COALESCE(counted.lines, 0)::text AS found
FROM feeds
FULL JOIN counted USING (org_no, feed)
WHERE COALESCE(feeds.lines, 0) <> COALESCE(counted.lines, 0)
UNION ALL
SELECT org_no, rule, 'organisation' AS place, expected, found
FROM known
FULL JOIN balances USING (org_no)
FULL JOIN holdings USING (org_no)
CROSS JOIN LATERAL (
    VALUES
        ('organisation_is_known', org_id IS NULL, 'a row of organisations', 'only movements of ' || org_no),
        (
            'balance', COALESCE(credits, 0) <> COALESCE(remaining, 0),
            COALESCE(credits, 0)::text, COALESCE(remaining, 0)::text
        ),
        ('grant_count', known.grants <> COALESCE(holdings.grants, 0), COALESCE(holdings.grants, 0)::text, known.grants::text),
        (
            'last_created_at', known.last_created_at < balances.last_created_at,
            balances.last_created_at::text, known.last_created_at::text
        )
) AS checked (rule, broken, expected, found)
WHERE broken;

-- name: find_wrong_offsets
-- One row for every shard, or nobody posts it.
SELECT NULL::bigint AS org_no, 'stream_offsets' AS rule, 'shard ' || shard AS place, expected, found
FROM (SELECT shard, 'a row' AS expected FROM ledger, generate_series(0, event_shards - 1) AS shard) AS wanted
FULL JOIN (SELECT shard, 'a row' AS found FROM stream_offsets) AS there USING (shard)
WHERE expected IS NULL OR found IS NULL;

-- name: name_organisations
-- The organisations' own names.
SELECT org_no, org_id FROM organisations WHERE org_no = ANY(%(org_nos)s);

-- name: number_organisation
-- The number of one organisation.
SELECT org_no FROM organisations WHERE org_id = %(org_id)s;
