-- name: read_page
-- A page, with the epoch and its feed's count: see worker/migrations/0004_read_pages.sql.
SELECT * FROM read_page(
    %(org_id)s::text, %(kind)s::"char", %(usage_number)s::smallint, %(element)s::integer,
    %(lines)s::bigint, %(skip)s::bigint, %(ceiling)s::bigint, %(floor)s::bigint
);
