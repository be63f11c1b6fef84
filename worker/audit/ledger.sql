-- Every find_wrong_… query returns findings: org_no, rule, place, expected, found. All but the one of offsets check a
-- range of organisations, from first_org to last_org. All queries run in one snapshot. They do not check what a unique
-- index ensures.

-- name: begin_snapshot
-- One moment for all queries.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: prepare_audit
-- Memory for sorts; movements are many and narrow, so sorting them on every core pays. Statements may run for as long
-- as a large ledger needs.
SET LOCAL work_mem = '256MB';
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0; -- a connection may wait for the others
SET LOCAL parallel_tuple_cost = 0.005;

-- name: forbid_parallel
-- A parallel query shares memory through /dev/shm, of which a container may have too little.
SET LOCAL max_parallel_workers_per_gather = 0;

-- name: count_checked
-- How many organisations, movements and grants are checked, according to the counts in the organisations' rows.
SELECT count(*), COALESCE(sum(counts[1]), 0)::bigint, COALESCE(sum(grants), 0)::bigint
FROM organisations
WHERE org_no BETWEEN %(first_org)s AND %(last_org)s;

-- name: export_snapshot
-- The id of this snapshot, with which other connections can read it too.
SELECT pg_export_snapshot();

-- name: divide
-- The first organisations of ranges that hold about as many movements each.
SELECT min(org_no)
FROM (
    SELECT org_no, (sum(counts[1]) OVER (ORDER BY org_no) - 1) * %(parts)s / GREATEST(sum(counts[1]) OVER (), 1) AS part
    FROM organisations
) AS parts
GROUP BY trunc(part)
ORDER BY 1;

-- name: find_wrong_order
-- Compares every movement with the one before it. Positions and the ordinals of kinds have no gaps and increase
-- together; times never decrease; each balance is the sum of the credits of all kinds but overflow; each hash is the one
-- that worker/ledger/hash_chain.py computes. Reports the first error of each rule. (One pass over the sorted movements
-- checks all: sorting is half of the query's time. The totals of usages are checked by find_wrong_usage_ordinals.)
SELECT DISTINCT ON (org_no, rule) org_no, rule, 'position ' || position AS place, expected, found
FROM (
    SELECT
        org_no, position, kind_ordinal, created_at, hash, balance,
        CASE WHEN usage_number IS NULL THEN total END AS total,
        lag(position, 1, 0::bigint) OVER by_position + 1 AS next_position,
        lag(created_at) OVER by_position AS last_created_at,
        CASE kind
            WHEN 'a' THEN count(*) FILTER (WHERE kind = 'a') OVER by_position
            WHEN 'c' THEN count(*) FILTER (WHERE kind = 'c') OVER by_position
            WHEN 'o' THEN count(*) FILTER (WHERE kind = 'o') OVER by_position
            WHEN 'e' THEN count(*) FILTER (WHERE kind = 'e') OVER by_position
            WHEN 'r' THEN count(*) FILTER (WHERE kind = 'r') OVER by_position
        END AS next_kind_ordinal,
        sum(credits) FILTER (WHERE kind <> 'o') OVER by_position AS next_balance,
        CASE kind
            WHEN 'a' THEN sum(credits) FILTER (WHERE kind = 'a') OVER by_position
            WHEN 'e' THEN sum(credits) FILTER (WHERE kind = 'e') OVER by_position
            WHEN 'r' THEN sum(credits) FILTER (WHERE kind = 'r') OVER by_position
        END AS next_total,
        sha256(
            COALESCE(lag(hash) OVER by_position, sha256(convert_to(org_id, 'UTF8')))
            || convert_to(
                concat_ws(
                    ' ', position, kind, credits, balance, total, COALESCE(usage_kind, '-'), usage_ref,
                    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                    COALESCE(draws, '-'), COALESCE(labels, '-')
                ), 'UTF8'
            )
        ) AS next_hash
    FROM movements
    LEFT JOIN organisations USING (org_no)
    LEFT JOIN usage_kinds USING (usage_number)
    LEFT JOIN movement_labels USING (org_no, position)
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    WINDOW by_position AS (PARTITION BY org_no ORDER BY position ROWS UNBOUNDED PRECEDING)
) AS numbered
CROSS JOIN LATERAL (
    VALUES
        ('position', position <> next_position, next_position::text, position::text),
        ('kind_ordinal', kind_ordinal <> next_kind_ordinal, next_kind_ordinal::text, kind_ordinal::text),
        ('created_at', created_at < last_created_at, 'not before ' || last_created_at, created_at::text),
        ('balance', balance <> next_balance, next_balance::text, balance::text),
        ('total', total <> next_total, next_total::text, total::text),
        ('hash', hash <> next_hash, encode(next_hash, 'hex'), encode(hash, 'hex'))
) AS checked (rule, broken, expected, found)
WHERE (
    position <> next_position OR kind_ordinal <> next_kind_ordinal OR created_at < last_created_at
    OR balance <> next_balance OR total <> next_total OR hash <> next_hash
) AND broken
ORDER BY org_no, rule, position;

-- name: find_wrong_usage_ordinals
-- The ordinals of usage kinds have no gaps and increase with the position; the total of a usage is the sum of the credits
-- of its kind and usage kind. Reports the first error of each rule.
SELECT DISTINCT ON (org_no, rule, usage_number) org_no, rule, 'position ' || position AS place, expected, found
FROM (
    SELECT
        org_no, position, usage_number, usage_ordinal, kind_usage_ordinal, total,
        row_number() OVER by_position AS next_usage_ordinal,
        CASE kind
            WHEN 'c' THEN count(*) FILTER (WHERE kind = 'c') OVER by_position
            ELSE count(*) FILTER (WHERE kind <> 'c') OVER by_position
        END AS next_kind_usage_ordinal,
        CASE kind
            WHEN 'c' THEN sum(credits) FILTER (WHERE kind = 'c') OVER by_position
            ELSE sum(credits) FILTER (WHERE kind <> 'c') OVER by_position
        END AS next_total
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND usage_number IS NOT NULL
    WINDOW by_position AS (PARTITION BY org_no, usage_number ORDER BY position ROWS UNBOUNDED PRECEDING)
) AS numbered
CROSS JOIN LATERAL (
    VALUES
        ('usage_ordinal', usage_ordinal <> next_usage_ordinal, next_usage_ordinal, usage_ordinal),
        (
            'kind_usage_ordinal', kind_usage_ordinal <> next_kind_usage_ordinal,
            next_kind_usage_ordinal, kind_usage_ordinal
        ),
        ('total', total <> next_total, next_total, total)
) AS checked (rule, broken, expected, found)
WHERE (
    usage_ordinal <> next_usage_ordinal OR kind_usage_ordinal <> next_kind_usage_ordinal OR total <> next_total
) AND broken
ORDER BY org_no, rule, usage_number, position;

-- name: find_wrong_overflows
-- If a usage has a consume and an overflow, the overflow comes directly after the consume, with the same usage kind.
SELECT
    org_no, 'overflow_follows_consume' AS rule, 'usage ' || usage_ref AS place,
    format('position %%s, usage kind %%s', consume.position + 1, consume.usage_number) AS expected,
    format('position %%s, usage kind %%s', overflow.position, overflow.usage_number) AS found
FROM movements AS overflow
JOIN movements AS consume USING (org_no, usage_ref)
WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    AND consume.org_no BETWEEN %(first_org)s AND %(last_org)s
    AND overflow.kind = 'o'
    AND consume.kind = 'c'
    AND (overflow.position <> consume.position + 1 OR overflow.usage_number <> consume.usage_number);

-- name: find_wrong_draws
-- The draws of a consume add up to its credits. (OFFSET 0 stops the planner from merging the subquery. Otherwise it
-- estimates the sum as expensive and, to compute it for fewer rows, uses an index. That took five times as long.)
SELECT
    org_no, 'draws' AS rule, 'position ' || position AS place,
    format('draws that sum to %%s', -credits) AS expected, draws AS found
FROM (
    SELECT org_no, position, credits, draws
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND kind = 'c'
    OFFSET 0
) AS consumes
WHERE -credits <> CASE strpos(draws, ',')
    WHEN 0 THEN split_part(draws, ':', 2)::numeric
    ELSE (SELECT sum(split_part(draw, ':', 2)::numeric) FROM string_to_table(draws, ',') AS draw)
END;

-- name: find_wrong_grants
-- Compares every grant with its own movements and with the draws from it.
WITH own_movements AS (
    SELECT
        org_no, usage_ref AS grant_ref,
        count(*) FILTER (WHERE kind = 'a') AS allots,
        min(position) FILTER (WHERE kind = 'a') AS allotted_at,
        COALESCE(sum(credits) FILTER (WHERE kind = 'a'), 0) AS allotted,
        COALESCE(-sum(credits) FILTER (WHERE kind = 'e'), 0) AS expired,
        COALESCE(-sum(credits) FILTER (WHERE kind = 'r'), 0) AS revoked,
        count(*) FILTER (WHERE kind <> 'a') AS ends,
        min(position) FILTER (WHERE kind <> 'a') AS ended_at,
        -- all of its lines have the labels of the grant
        COALESCE(min(labels), '-') AS least_labels,
        COALESCE(max(labels), '-') AS greatest_labels,
        count(labels) AS labelled
    FROM movements
    LEFT JOIN movement_labels USING (org_no, position)
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND usage_number IS NULL
    GROUP BY org_no, usage_ref
),

draws AS (
    SELECT
        org_no, split_part(draw, ':', 1)::bigint AS grant_no, sum(split_part(draw, ':', 2)::bigint) AS drawn,
        min(position) AS first_at, max(position) AS last_at
    FROM movements
    CROSS JOIN LATERAL string_to_table(draws, ',') AS draw
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND kind = 'c'
    GROUP BY 1, 2
),

known AS (
    SELECT *, true AS is_known, row_number() OVER (PARTITION BY org_no ORDER BY grant_no) AS next_grant_no
    FROM grants
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
)

SELECT
    org_no, rule, COALESCE('grant ' || grant_ref, 'grant number ' || grant_no) AS place, expected, found
FROM known
FULL JOIN own_movements USING (org_no, grant_ref)
FULL JOIN draws USING (org_no, grant_no)
CROSS JOIN LATERAL (
    SELECT 'grant_is_known' AS rule, 'a grant' AS expected, 'only movements or draws that name it' AS found
    WHERE is_known IS NULL
    UNION ALL
    SELECT 'grant_number', next_grant_no::text, grant_no::text
    WHERE grant_no <> next_grant_no
    UNION ALL
    SELECT
        'grant_sum', known.credits::text,
        format(
            '%%s drawn + %%s expired + %%s revoked + %%s remaining',
            known.drawn, known.expired, known.revoked, remaining
        )
    WHERE allot_position IS NOT NULL AND credits <> known.drawn + known.expired + known.revoked + remaining
    UNION ALL
    SELECT 'grant_drawn', COALESCE(draws.drawn, 0)::text, known.drawn::text
    WHERE known.drawn <> COALESCE(draws.drawn, 0)
    UNION ALL
    SELECT 'grant_expired', COALESCE(own_movements.expired, 0)::text, known.expired::text
    WHERE known.expired <> COALESCE(own_movements.expired, 0)
    UNION ALL
    SELECT 'grant_revoked', COALESCE(own_movements.revoked, 0)::text, known.revoked::text
    WHERE known.revoked <> COALESCE(own_movements.revoked, 0)
    UNION ALL
    SELECT
        'grant_allot',
        format('one allot movement of %%s credits at position %%s', credits, allot_position),
        format('%%s allot movements, of %%s credits, the first at position %%s', allots, allotted, allotted_at)
    WHERE allot_position IS NOT NULL
        AND (allots, allotted_at, allotted) IS DISTINCT FROM (1, allot_position, credits)
    UNION ALL
    SELECT 'grant_allot', 'no allot movement', format('%%s allot movements', allots)
    WHERE is_known AND allot_position IS NULL AND allots > 0
    UNION ALL
    SELECT 'grant_end', CASE WHEN open THEN 'no end movement' ELSE 'one end movement at most' END, ends::text
    WHERE ends > (NOT open)::int
    UNION ALL
    SELECT
        'grant_order', 'allot, draws, end',
        format('allot at %%s, draws at %%s to %%s, end at %%s', allotted_at, first_at, last_at, ended_at)
    WHERE first_at < allotted_at OR last_at > ended_at OR ended_at < allotted_at
    UNION ALL
    SELECT
        'grant_positions',
        format('drawn from %%s to %%s, closed at %%s', first_at, last_at, CASE WHEN NOT open THEN COALESCE(ended_at, last_at) END),
        format('drawn from %%s to %%s, closed at %%s', first_draw_position, last_draw_position, close_position)
    WHERE (first_draw_position, last_draw_position, close_position)
        IS DISTINCT FROM (first_at, last_at, CASE WHEN NOT open THEN COALESCE(ended_at, last_at) END)
    UNION ALL
    SELECT
        'grant_labels', COALESCE(labels, 'none'),
        CASE WHEN least_labels <> '-' THEN least_labels ELSE 'movements without labels' END
    WHERE allots > 0
        AND (labelled, COALESCE(labels, '-')) IS DISTINCT FROM (CASE WHEN labels IS NULL THEN 0 ELSE allots + ends END, greatest_labels)
) AS checked;

-- name: find_wrong_totals
-- Compares every count and total in an organisation's row with its movements, and the sum of its movements with its
-- grants.
WITH sums AS MATERIALIZED (
    SELECT
        org_no, kind, usage_number, count(*) AS movements, sum(credits) AS credits, max(created_at) AS last_created_at
    FROM movements
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    GROUP BY org_no, kind, usage_number
),

feeds AS (
    SELECT org_no, feed, sum(movements) AS movements, sum(credits) AS credits
    FROM sums
    CROSS JOIN LATERAL (
        VALUES
            (0),
            (position(kind::text IN 'acoer')),
            (6 + 3 * usage_number),
            (7 + 3 * usage_number + (kind = 'o')::int)
    ) AS belongs (feed)
    WHERE feed IS NOT NULL
    GROUP BY org_no, feed
),

counted AS (
    SELECT org_no, element - 1 AS feed, movements, credits
    FROM organisations
    CROSS JOIN LATERAL unnest(counts, totals) WITH ORDINALITY AS c (movements, credits, element)
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
),

balances AS (
    SELECT org_no, sum(credits) FILTER (WHERE kind <> 'o') AS credits, max(last_created_at) AS last_created_at
    FROM sums
    GROUP BY org_no
),

holdings AS (
    SELECT
        org_no, count(*) AS grants, sum(remaining) FILTER (WHERE allot_position IS NOT NULL) AS remaining,
        sum(credits) FILTER (WHERE open AND allot_position IS NULL) AS pending
    FROM grants
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    GROUP BY org_no
),

known AS (
    SELECT org_no, org_id, grants, pending, last_created_at
    FROM organisations
    WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
)

SELECT org_no, rule, 'feed ' || feed AS place, expected::text AS expected, found::text AS found
FROM feeds
FULL JOIN counted USING (org_no, feed)
CROSS JOIN LATERAL (
    VALUES
        ('count', COALESCE(feeds.movements, 0), COALESCE(counted.movements, 0)),
        ('feed_total', COALESCE(feeds.credits, 0), COALESCE(counted.credits, 0))
) AS checked (rule, expected, found)
WHERE expected <> found
UNION ALL
SELECT org_no, rule, 'organisation' AS place, expected, found
FROM known
FULL JOIN balances USING (org_no)
FULL JOIN holdings USING (org_no)
CROSS JOIN LATERAL (
    VALUES
        ('organisation_is_known', org_id IS NULL, 'a row of organisations', 'only movements of ' || org_no),
        (
            'remaining', COALESCE(credits, 0) <> COALESCE(remaining, 0),
            COALESCE(credits, 0)::text, COALESCE(remaining, 0)::text
        ),
        (
            'grant_count', known.grants <> COALESCE(holdings.grants, 0),
            COALESCE(holdings.grants, 0)::text, known.grants::text
        ),
        (
            'pending', known.pending <> COALESCE(holdings.pending, 0),
            COALESCE(holdings.pending, 0)::text, known.pending::text
        ),
        (
            'last_created_at', known.last_created_at < balances.last_created_at,
            balances.last_created_at::text, known.last_created_at::text
        )
) AS checked (rule, broken, expected, found)
WHERE broken;

-- name: find_wrong_last_hashes
-- The hash in an organisation's row, from which the next hash is computed, is that of its newest movement.
SELECT
    org_no, 'last_hash' AS rule, 'organisation' AS place,
    COALESCE(encode(newest.hash, 'hex'), 'none') AS expected, COALESCE(encode(last_hash, 'hex'), 'none') AS found
FROM organisations
LEFT JOIN LATERAL (
    SELECT movements.hash
    FROM movements
    WHERE movements.org_no = organisations.org_no
    ORDER BY movements.position DESC
    LIMIT 1
) AS newest ON true
WHERE org_no BETWEEN %(first_org)s AND %(last_org)s AND newest.hash IS DISTINCT FROM last_hash;

-- name: find_wrong_labels
-- Labels belong to a movement.
SELECT org_no, 'labels' AS rule, 'position ' || position AS place, 'a movement' AS expected, labels AS found
FROM movement_labels
WHERE org_no BETWEEN %(first_org)s AND %(last_org)s
    AND NOT EXISTS (
        SELECT FROM movements AS m WHERE m.org_no = movement_labels.org_no AND m.position = movement_labels.position
    );

-- name: find_wrong_offsets
-- Every shard has a row, without which it is not posted, and there are no other rows.
SELECT NULL::bigint AS org_no, 'stream_offsets' AS rule, 'shard ' || shard AS place, expected, found
FROM (SELECT shard, 'a row' AS expected FROM ledger, generate_series(0, event_shards - 1) AS shard) AS wanted
FULL JOIN (SELECT shard, 'a row' AS found FROM stream_offsets) AS there USING (shard)
WHERE expected IS NULL OR found IS NULL;

-- name: read_org_ids
-- The ids of organisations, by their numbers.
SELECT org_no, org_id FROM organisations WHERE org_no = ANY(%(org_nos)s);

-- name: find_organisation
-- The number of an organisation.
SELECT org_no FROM organisations WHERE org_id = %(org_id)s;

-- name: read_newest_hash
-- The position and the hash of an organisation's newest movement. There is no row before the first movement.
SELECT counts[1], encode(last_hash, 'hex') FROM organisations WHERE org_no = %(org_no)s AND last_hash IS NOT NULL;

-- name: read_hash
-- The hash of one movement.
SELECT encode(hash, 'hex') FROM movements WHERE org_no = %(org_no)s AND position = %(position)s;
