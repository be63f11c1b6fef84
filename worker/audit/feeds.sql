-- name: read_counts
-- How many movements each feed of an organisation has. There is no row for an unknown organisation.
SELECT counts FROM organisations WHERE org_id = %(org_id)s;
