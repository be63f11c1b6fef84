-- name: read_page
-- The movements of a page, with the epoch and the feed's count of the same moment. The function's definition and the
-- reasons for it are in worker/migrations/0001_create_ledger.sql.
SELECT * FROM read_page(
    %(org_id)s::text, %(kind)s::"char", %(usage_number)s::smallint, %(element)s::integer,
    %(limit)s::bigint, %(skip)s::bigint, %(ceiling)s::bigint, %(floor)s::bigint
);
