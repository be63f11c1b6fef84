-- The statements of posting.py for a new usage, for pgbench. A grant covers every usage, so there is no overflow.
\set org_id random(1, 1000)
\set n :n + 1
\set credits 10
BEGIN;
SELECT movements FROM organisations WHERE id = :org_id FOR UPDATE \gset
SELECT count(*) AS known FROM (
    SELECT usage_kind, sum(credits) FROM movements
    WHERE org_id = :org_id AND usage_ref = 'usage_' || :client_id::text || '_' || :n::text
    GROUP BY usage_kind
) AS k \gset
\if :known = 0
SELECT id AS grant_id, remaining FROM grants
WHERE org_id = :org_id AND remaining > 0 AND (expires_at IS NULL OR expires_at > now())
ORDER BY priority, expires_at, id
LIMIT 1 \gset
\set drawn least(:credits, :remaining)
UPDATE grants SET remaining = remaining - :drawn WHERE id = :grant_id;
\set position :movements + 1
INSERT INTO movements (org_id, position, kind, credits, usage_kind, usage_ref)
VALUES (:org_id, :position, 'consume', -(:drawn::bigint), 'ai_usage', 'usage_' || :client_id::text || '_' || :n::text);
UPDATE organisations SET movements = :position WHERE id = :org_id;
\endif
COMMIT;
