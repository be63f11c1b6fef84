-- name: read_counts
-- How many lines each feed of an organisation has; no row for one that nobody knows.
SELECT counts FROM organisations WHERE org_id = %(org_id)s;
