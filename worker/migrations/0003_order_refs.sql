-- migrate:up

-- First what every batch takes first: one that is under way ends, and the next waits here, not in the middle.
LOCK TABLE organisations IN EXCLUSIVE MODE;

-- What stands for a usage's ref in the index: five characters near its beginning, behind the type of a TypeID, so that refs
-- of one time lie together (TypeIDs and ULIDs of half a minute, UUIDv7s of a quarter of an hour); and 104 bits of a
-- SHA-256, so that every ref takes as little room. (The digest alone put each line on a page of its own: at ten million
-- lines four kilobytes of log an event after a checkpoint, and a third more CPU in Postgres at any time. Refs in the very
-- order of their time would halve its pages, as they come: 88 bytes a line in place of 55.)
-- A ref holds no character that `decode` would read as an escape.
CREATE FUNCTION ref_key(ref text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT
        decode(substring(split_part(ref, '_', -1) FROM 3 FOR 5), 'escape')
        || substring(sha256(decode(ref, 'escape')) FROM 1 FOR 13)
$$;

-- Made before the other goes: pages are read meanwhile, posting waits for about two seconds a million lines. (Not while
-- `verify` runs: pages would wait with us for its end.)
-- A usage has one consume and one overflow line at most; by this index a known ref is found, and then compared.
-- (NULLS FIRST is an order that no other index has: see `read_usages`.)
CREATE UNIQUE INDEX movements_by_ref_key ON movements (org_no, ref_key(usage_ref), kind NULLS FIRST)
WHERE usage_number IS NOT NULL;

DROP INDEX movements_by_usage_ref;
ALTER INDEX movements_by_ref_key RENAME TO movements_by_usage_ref;
DROP FUNCTION ref_digest(text);
