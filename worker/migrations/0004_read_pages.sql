-- migrate:up

-- Where is a page of an organisation's feed, at the count of this very moment, and which lines does it hold?
--
-- `of_kind` and `of_usage_number` narrow the feed; `element` is its number + 1, as arrays count from 1. `lines`, `skip`,
-- `ceiling` and `floor` are a `feeds.page.Place`. There is always one row; where the page is empty its line is NULL.
-- STABLE: all that it reads is of the snapshot of the statement that calls it, so count and lines belong together.
--
-- A function, because Postgres keeps a function's plans with the connection, whoever uses that next: behind PgBouncer too.
-- Planning was half of a page's time. Each shape has one good plan, a range of one index read backwards; the settings
-- leave no other, whatever the statistics say of a young table. (The bounds are variables: an expression in the scan's own
-- condition is not leakproof on PostgreSQL 15, so under row security no index would bound it.)
CREATE FUNCTION read_page(
    of_org_id text, of_kind "char", of_usage_number smallint, element integer,
    lines bigint, skip bigint, ceiling bigint, floor bigint
) RETURNS TABLE (
    epoch uuid, count bigint, ordinal bigint, movement_id uuid, kind "char", credits bigint, usage_kind text,
    usage_ref text, created_at timestamptz
) LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    of_org_no integer;
    newest bigint;
    below bigint;
BEGIN
    SELECT l.epoch, o.org_no, COALESCE(o.counts[element], 0) -- none yet: usage kinds may have been added since
    INTO epoch, of_org_no, count
    FROM ledger AS l
    LEFT JOIN organisations AS o ON o.org_id = of_org_id
    WHERE l.single;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    newest := LEAST(count - skip, ceiling);
    below := GREATEST(newest - lines, floor);
    IF of_kind IS NULL AND of_usage_number IS NULL THEN
        RETURN QUERY
        SELECT epoch, count, m.position, m.movement_id, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.position <= newest AND m.position > below
        ORDER BY m.position DESC;
    ELSIF of_usage_number IS NULL THEN
        RETURN QUERY
        SELECT epoch, count, m.kind_ordinal, m.movement_id, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.kind = of_kind AND m.kind_ordinal <= newest AND m.kind_ordinal > below
        ORDER BY m.kind_ordinal DESC;
    ELSIF of_kind IS NULL THEN
        RETURN QUERY
        SELECT epoch, count, m.usage_ordinal, m.movement_id, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.usage_number = of_usage_number
            AND m.usage_ordinal <= newest AND m.usage_ordinal > below
        ORDER BY m.usage_ordinal DESC;
    ELSE
        RETURN QUERY
        SELECT
            epoch, count, m.kind_usage_ordinal, m.movement_id, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.usage_number = of_usage_number AND m.kind = of_kind
            AND m.kind_usage_ordinal <= newest AND m.kind_usage_ordinal > below
        ORDER BY m.kind_usage_ordinal DESC;
    END IF;
    IF NOT FOUND THEN
        RETURN NEXT;
    END IF;
END
$$;
