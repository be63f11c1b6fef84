-- name: read_epoch
-- The random id of this history of the ledger. Every key of the cached feeds carries it.
SELECT epoch FROM ledger;

-- name: renew_epoch
-- A new epoch in the place of one that was seen; nothing, where somebody else was first.
UPDATE ledger
SET epoch = gen_random_uuid()
WHERE epoch = %(seen)s
RETURNING epoch;
