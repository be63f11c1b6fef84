-- name: read_role
-- The role of this connection: its name, whether it is a superuser, whether it owns the movements, and whether it sees
-- all of them.
SELECT
    current_user::text,
    r.rolsuper,
    pg_has_role(r.oid, m.relowner, 'USAGE'),
    NOT row_security_active(m.oid)
        OR EXISTS (SELECT FROM pg_roles AS w WHERE w.rolname = 'usage_feeds_worker' AND pg_has_role(r.oid, w.oid, 'USAGE'))
FROM pg_roles AS r, pg_class AS m
WHERE r.rolname = current_user AND m.oid = 'movements'::regclass;

-- name: find_lacking
-- Which of these rights the role of this connection does not have. Without a column the right is one on the whole table.
SELECT n.action, n.name, n.field
FROM unnest(%(actions)s::text[], %(tables)s::text[], %(columns)s::text[]) AS n (action, name, field)
WHERE NOT CASE
    WHEN n.field IS NULL THEN has_table_privilege(n.name, n.action)
    ELSE has_column_privilege(n.name, n.field, n.action)
END;
