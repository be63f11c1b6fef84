-- name: read_process_id
-- Which process of the server runs this statement.
SELECT pg_backend_pid();
