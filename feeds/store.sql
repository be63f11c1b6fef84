-- Four shapes of one question: where is the page, at the count of this very moment? Each is one statement, so
-- count and lines are of one snapshot, and reads one range of one index, backwards. `ceiling`, `floor`, `skip` and
-- `lines` are a `feeds.page.Place`; `newest` and `below` are the span that it cuts, computed before the scan: an
-- expression in the scan's own condition is not leakproof on PostgreSQL 15, so under row security no index would
-- bound it. `element` is the feed's number + 1, as arrays count from 1. There is always one row; where the page is
-- empty its line is NULL. A missing count is 0: usage kinds may have been added since.

-- name: read_everything
-- An organisation's movements.
SELECT
    moment.epoch, moment.count,
    line.ordinal, line.movement_id, line.kind, line.credits, usage_kinds.usage_kind, line.usage_ref, line.created_at
FROM (
    SELECT
        ledger.epoch, organisations.org_no,
        COALESCE(organisations.counts[%(element)s], 0) AS count,
        LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) AS newest,
        GREATEST(
            LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) - %(lines)s, %(floor)s
        ) AS below
    FROM ledger
    LEFT JOIN organisations ON organisations.org_id = %(org_id)s
    OFFSET 0
) AS moment
LEFT JOIN LATERAL (
    SELECT
        movements.position AS ordinal, movements.movement_id, movements.kind, movements.credits,
        movements.usage_number, movements.usage_ref, movements.created_at
    FROM movements
    WHERE movements.org_no = moment.org_no
        AND movements.position <= moment.newest
        AND movements.position > moment.below
    ORDER BY movements.position DESC
    LIMIT %(lines)s
) AS line ON true
LEFT JOIN usage_kinds ON usage_kinds.usage_number = line.usage_number
ORDER BY line.ordinal DESC;

-- name: read_kind
-- An organisation's movements of one kind.
SELECT
    moment.epoch, moment.count,
    line.ordinal, line.movement_id, line.kind, line.credits, usage_kinds.usage_kind, line.usage_ref, line.created_at
FROM (
    SELECT
        ledger.epoch, organisations.org_no,
        COALESCE(organisations.counts[%(element)s], 0) AS count,
        LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) AS newest,
        GREATEST(
            LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) - %(lines)s, %(floor)s
        ) AS below
    FROM ledger
    LEFT JOIN organisations ON organisations.org_id = %(org_id)s
    OFFSET 0
) AS moment
LEFT JOIN LATERAL (
    SELECT
        movements.kind_ordinal AS ordinal, movements.movement_id, movements.kind, movements.credits,
        movements.usage_number, movements.usage_ref, movements.created_at
    FROM movements
    WHERE movements.org_no = moment.org_no
        AND movements.kind = %(kind)s::"char"
        AND movements.kind_ordinal <= moment.newest
        AND movements.kind_ordinal > moment.below
    ORDER BY movements.kind_ordinal DESC
    LIMIT %(lines)s
) AS line ON true
LEFT JOIN usage_kinds ON usage_kinds.usage_number = line.usage_number
ORDER BY line.ordinal DESC;

-- name: read_usage_kind
-- An organisation's movements of one usage kind.
SELECT
    moment.epoch, moment.count,
    line.ordinal, line.movement_id, line.kind, line.credits, usage_kinds.usage_kind, line.usage_ref, line.created_at
FROM (
    SELECT
        ledger.epoch, organisations.org_no,
        COALESCE(organisations.counts[%(element)s], 0) AS count,
        LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) AS newest,
        GREATEST(
            LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) - %(lines)s, %(floor)s
        ) AS below
    FROM ledger
    LEFT JOIN organisations ON organisations.org_id = %(org_id)s
    OFFSET 0
) AS moment
LEFT JOIN LATERAL (
    SELECT
        movements.usage_ordinal AS ordinal, movements.movement_id, movements.kind, movements.credits,
        movements.usage_number, movements.usage_ref, movements.created_at
    FROM movements
    WHERE movements.org_no = moment.org_no
        AND movements.usage_number = %(usage_number)s
        AND movements.usage_ordinal <= moment.newest
        AND movements.usage_ordinal > moment.below
    ORDER BY movements.usage_ordinal DESC
    LIMIT %(lines)s
) AS line ON true
LEFT JOIN usage_kinds ON usage_kinds.usage_number = line.usage_number
ORDER BY line.ordinal DESC;

-- name: read_kind_and_usage_kind
-- An organisation's movements of one kind and usage kind.
SELECT
    moment.epoch, moment.count,
    line.ordinal, line.movement_id, line.kind, line.credits, usage_kinds.usage_kind, line.usage_ref, line.created_at
FROM (
    SELECT
        ledger.epoch, organisations.org_no,
        COALESCE(organisations.counts[%(element)s], 0) AS count,
        LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) AS newest,
        GREATEST(
            LEAST(COALESCE(organisations.counts[%(element)s], 0) - %(skip)s, %(ceiling)s) - %(lines)s, %(floor)s
        ) AS below
    FROM ledger
    LEFT JOIN organisations ON organisations.org_id = %(org_id)s
    OFFSET 0
) AS moment
LEFT JOIN LATERAL (
    SELECT
        movements.kind_usage_ordinal AS ordinal, movements.movement_id, movements.kind, movements.credits,
        movements.usage_number, movements.usage_ref, movements.created_at
    FROM movements
    WHERE movements.org_no = moment.org_no
        AND movements.kind = %(kind)s::"char"
        AND movements.usage_number = %(usage_number)s
        AND movements.kind_usage_ordinal <= moment.newest
        AND movements.kind_usage_ordinal > moment.below
    ORDER BY movements.kind_usage_ordinal DESC
    LIMIT %(lines)s
) AS line ON true
LEFT JOIN usage_kinds ON usage_kinds.usage_number = line.usage_number
ORDER BY line.ordinal DESC;
