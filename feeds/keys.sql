-- name: insert_organisation
-- The organisation's row, if it is not known yet.
INSERT INTO organisations (org_id) VALUES (%(org_id)s) ON CONFLICT (org_id) DO NOTHING;

-- name: insert_key
-- A new key, of an organisation or of a person.
INSERT INTO api_keys (key_id, digest, org_id, user_id, permissions, expires_at, rate)
VALUES (%(key_id)s, %(digest)s, %(org_id)s, %(user_id)s, %(permissions)s, %(expires_at)s, %(rate)s)
RETURNING key_id, org_id, user_id, permissions, created_at, expires_at, revoked_at, last_used_at, rate;

-- name: list_keys
-- All keys, without what could serve as one.
SELECT key_id, org_id, user_id, permissions, created_at, expires_at, revoked_at, last_used_at, rate
FROM api_keys
ORDER BY created_at, key_id;

-- name: revoke_key
-- The key, revoked now unless it was before; no row where there is none.
UPDATE api_keys
SET revoked_at = COALESCE(revoked_at, clock_timestamp())
WHERE key_id = %(key_id)s
RETURNING key_id, org_id, user_id, permissions, created_at, expires_at, revoked_at, last_used_at, rate;

-- name: upsert_member
-- The person's role in the organisation.
INSERT INTO members (org_id, user_id, role) VALUES (%(org_id)s, %(user_id)s, %(role)s)
ON CONFLICT (org_id, user_id) DO UPDATE SET role = excluded.role;

-- name: delete_member
-- One row where the person was a member.
DELETE FROM members WHERE org_id = %(org_id)s AND user_id = %(user_id)s RETURNING role;
