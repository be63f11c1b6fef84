-- name: read_counts
-- How many movements each feed of an organisation has, and its revision. There is no row for an unknown organisation.
SELECT counts, revision FROM organisations WHERE org_id = %(org_id)s;
