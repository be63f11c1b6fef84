-- name: bury
-- Dead letters, unique by source: an entry that was buried stays as it is.
INSERT INTO dead_letters (stream, entry_id, digest, raw, raw_bytes, org_id, code, message, fields, added_at)
SELECT *
FROM unnest(
    %(streams)s::text[], %(entry_ids)s::text[], %(digests)s::bytea[], %(raws)s::bytea[], %(raw_bytes)s::bigint[],
    %(org_ids)s::text[], %(codes)s::text[], %(messages)s::text[], %(fields)s::jsonb[], %(added_ats)s::timestamptz[]
)
ON CONFLICT (stream, entry_id, digest) DO NOTHING;
