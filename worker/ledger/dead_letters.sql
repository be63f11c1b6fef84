-- name: bury
-- Add dead letters. They are unique by source: an entry that is a dead letter already stays as it is.
INSERT INTO dead_letters (stream, entry_id, digest, raw, raw_bytes, org_id, code, message, fields, added_at)
SELECT *
FROM unnest(
    %(stream)s::text[], %(entry_id)s::text[], %(digest)s::bytea[], %(raw)s::bytea[], %(raw_bytes)s::bigint[],
    %(org_id)s::text[], %(code)s::text[], %(message)s::text[], %(fields)s::jsonb[], %(added_at)s::timestamptz[]
)
ON CONFLICT (stream, entry_id, digest) DO NOTHING;

-- name: list_dead_letters
-- The newest dead letters, by code and organisation if these are given.
SELECT dead_letter_id, buried_at, code, org_id, message, fields, stream, entry_id, added_at, raw, raw_bytes
FROM dead_letters
WHERE (%(code)s::text IS NULL OR code = %(code)s) AND (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
ORDER BY dead_letter_id DESC
LIMIT %(limit)s;

-- name: count_dead_letters
-- How many dead letters there are, by code and organisation if these are given.
SELECT count(*)
FROM dead_letters
WHERE (%(code)s::text IS NULL OR code = %(code)s) AND (%(org_id)s::text IS NULL OR org_id = %(org_id)s);

-- name: find_dead_letters
-- The dead letters with these ids, oldest first.
SELECT dead_letter_id, buried_at, code, org_id, message, fields, stream, entry_id, added_at, raw, raw_bytes
FROM dead_letters
WHERE dead_letter_id = ANY(%(dead_letter_ids)s)
ORDER BY dead_letter_id;

-- name: list_dead_letter_ids
-- All ids in the order in which the dead letters were buried.
SELECT dead_letter_id FROM dead_letters ORDER BY dead_letter_id;

-- name: discard_dead_letters
-- Delete the dead letters with these ids.
DELETE FROM dead_letters WHERE dead_letter_id = ANY(%(dead_letter_ids)s) RETURNING dead_letter_id;

-- name: discard_buried_before
-- Delete the dead letters that were buried before a time; all of them if no time is given.
DELETE FROM dead_letters
WHERE %(before)s::timestamptz IS NULL OR buried_at < %(before)s
RETURNING dead_letter_id;
