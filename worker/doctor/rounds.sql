-- name: read_clock
-- The time of the server's clock, in seconds since 1970.
SELECT extract(epoch FROM clock_timestamp());
