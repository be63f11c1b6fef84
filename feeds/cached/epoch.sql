-- name: read_epoch
-- The random id of this history of the ledger. Every key of the cached feeds carries it.
SELECT epoch FROM ledger;

-- name: renew_epoch
-- Replaces an epoch that was seen; changes nothing if another process has replaced it already.
UPDATE ledger
SET epoch = gen_random_uuid()
WHERE epoch = %(seen)s
RETURNING epoch;
