-- name: read_clock
-- The time of the server's clock, in seconds since 1970.
SELECT extract(epoch FROM clock_timestamp());

-- name: read_epoch
-- The id of the ledger's history.
SELECT epoch FROM ledger;
