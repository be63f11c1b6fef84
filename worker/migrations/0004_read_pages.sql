-- migrate:up

-- Returns a page of an organisation's feed, and the feed's count at the same moment.
--
-- `of_kind` and `of_usage_number` select the feed. `element` is the feed's number + 1, because arrays count from 1.
-- `lines`, `skip`, `ceiling` and `floor` are the limit, skip, ceiling and floor of a `feeds.page.Place`. If the page is
-- empty, one row is returned in which only epoch and count are set. The function is STABLE: it reads the snapshot of the statement that calls it, so count
-- and movements are of one moment.
--
-- It is a function because Postgres caches a function's plans with the connection, also behind PgBouncer, where the
-- next client uses them too. Planning took half of a page's time. For each kind of feed one plan is good: read a range
-- of one index backwards. The settings below exclude all others, whatever the statistics of a new table are. (The
-- bounds are variables because an expression in the scan's condition is not leakproof on PostgreSQL 15: with row-level
-- security no index would then bound the scan.)
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
    SELECT l.epoch, o.org_no, COALESCE(o.counts[element], 0) -- no element yet: the usage kind may be newer than the row
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
