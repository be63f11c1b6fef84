-- name: insert_organisation
-- Adds the organisation if it is unknown.
INSERT INTO organisations (org_id) VALUES (%(org_id)s) ON CONFLICT (org_id) DO NOTHING;

-- name: insert_key
-- Adds a key of an organisation or of a person.
INSERT INTO api_keys (key_id, digest, org_id, user_id, permissions, expires_at, rate)
VALUES (%(key_id)s, %(digest)s, %(org_id)s, %(user_id)s, %(permissions)s, %(expires_at)s, %(rate)s)
RETURNING key_id, org_id, user_id, permissions, created_at, expires_at, revoked_at, last_used_at, rate;

-- name: list_keys
-- All keys, without their digests.
SELECT key_id, org_id, user_id, permissions, created_at, expires_at, revoked_at, last_used_at, rate
FROM api_keys
ORDER BY created_at, key_id;

-- name: revoke_key
-- Revokes a key, unless it is already revoked, and returns it; no row if there is no such key.
UPDATE api_keys
SET revoked_at = COALESCE(revoked_at, clock_timestamp())
WHERE key_id = %(key_id)s
RETURNING key_id, org_id, user_id, permissions, created_at, expires_at, revoked_at, last_used_at, rate;

-- name: upsert_member
-- Sets the person's role in the organisation.
INSERT INTO members (org_id, user_id, role) VALUES (%(org_id)s, %(user_id)s, %(role)s)
ON CONFLICT (org_id, user_id) DO UPDATE SET role = excluded.role;

-- name: delete_member
-- Removes a member; one row if the person was a member.
DELETE FROM members WHERE org_id = %(org_id)s AND user_id = %(user_id)s RETURNING role;
