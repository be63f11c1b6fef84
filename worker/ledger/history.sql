-- name: lift_limit
-- The history of a large organisation is one transaction, which may take minutes.
SELECT CASE
    WHEN current_setting('server_version_num')::int >= 170000 THEN set_config('transaction_timeout', '0', true)
END;
