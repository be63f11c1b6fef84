-- name: list_dead_letters
-- The newest dead letters, by code and organisation where these are given.
SELECT dead_letter_id, buried_at, code, org_id, message, fields, stream, entry_id, added_at, raw, raw_bytes
FROM dead_letters
WHERE (%(code)s::text IS NULL OR code = %(code)s) AND (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
ORDER BY dead_letter_id DESC
LIMIT %(lines)s;

-- name: count_dead_letters
-- How many there are, by code and organisation where these are given.
SELECT count(*)
FROM dead_letters
WHERE (%(code)s::text IS NULL OR code = %(code)s) AND (%(org_id)s::text IS NULL OR org_id = %(org_id)s);

-- name: find_dead_letters
-- The dead letters with these ids.
SELECT dead_letter_id, buried_at, code, org_id, message, fields, stream, entry_id, added_at, raw, raw_bytes
FROM dead_letters
WHERE dead_letter_id = ANY(%(dead_letter_ids)s)
ORDER BY dead_letter_id;

-- name: list_dead_letter_ids
-- Every id, oldest first: the order in which they were buried.
SELECT dead_letter_id FROM dead_letters ORDER BY dead_letter_id;

-- name: discard_dead_letters
-- Forget these.
DELETE FROM dead_letters WHERE dead_letter_id = ANY(%(dead_letter_ids)s) RETURNING dead_letter_id;

-- name: discard_buried_before
-- Forget those buried before an instant; without one, all.
DELETE FROM dead_letters
WHERE %(before)s::timestamptz IS NULL OR buried_at < %(before)s
RETURNING dead_letter_id;
