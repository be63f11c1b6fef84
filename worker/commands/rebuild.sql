-- name: renew_epoch
-- A new epoch: what is cached under the old one will never be served again.
UPDATE ledger SET epoch = gen_random_uuid() RETURNING epoch;
