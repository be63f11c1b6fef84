-- name: read_server
-- What the server reports about itself: the fields of Server, in their order.
SELECT
    current_setting('server_version_num')::int,
    current_setting('server_encoding'),
    pg_is_in_recovery(),
    current_setting('fsync')::boolean,
    current_setting('full_page_writes')::boolean,
    current_setting('autovacuum')::boolean,
    (SELECT sum(numbackends) FROM pg_stat_database)::int,
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - COALESCE(current_setting('reserved_connections', true), '0')::int,
    current_setting('dynamic_shared_memory_type'),
    pg_backend_pid();

-- name: read_settings
-- The settings that this role and this database carry. Those of the role in this database win, so they come last.
SELECT split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
FROM pg_db_role_setting AS s, unnest(s.setconfig) AS setting
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
ORDER BY s.setrole <> 0, s.setdatabase <> 0;
