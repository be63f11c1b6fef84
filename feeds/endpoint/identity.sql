-- name: find_identity
-- A key, and its owner's role in the organisation that the request names. `FoundKey` has the columns in this order.
-- `is_use_due`: the note of the key's last use is at least a minute old.
SELECT
    api_keys.digest, api_keys.key_id, api_keys.org_id, api_keys.permissions, api_keys.expires_at,
    api_keys.revoked_at IS NOT NULL OR COALESCE(api_keys.expires_at <= clock_timestamp(), false) AS has_ended,
    members.role,
    COALESCE(api_keys.last_used_at <= clock_timestamp() - interval '1 minute', true) AS is_use_due,
    api_keys.rate
FROM api_keys
LEFT JOIN members ON members.user_id = api_keys.user_id AND members.org_id = %(org_id)s
WHERE api_keys.digest = %(digest)s;

-- name: note_uses
-- When keys were last used: written at most once a minute for each key.
UPDATE api_keys
SET last_used_at = clock_timestamp()
WHERE key_id = ANY(%(key_ids)s)
    AND COALESCE(last_used_at <= clock_timestamp() - interval '1 minute', true);
