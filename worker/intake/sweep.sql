-- name: bound_search
-- Time limits for this transaction: a sweep runs every second, so a slow one may be given up.
SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '1s', true);

-- name: find_due
-- Organisations with a grant whose start or end has come, longest due first. Each side reads one range of its index.
SELECT o.org_id
FROM (
    (
        SELECT org_no, effective_at AS due_at
        FROM grants
        WHERE open AND allot_position IS NULL AND effective_at <= clock_timestamp()
        ORDER BY effective_at
        LIMIT %(most)s
    )
    UNION ALL
    (
        SELECT org_no, expires_at + make_interval(secs => %(grace_s)s) AS due_at
        FROM grants
        WHERE open AND allot_position IS NOT NULL AND expires_at IS NOT NULL
            AND expires_at <= clock_timestamp() - make_interval(secs => %(grace_s)s)
        ORDER BY expires_at
        LIMIT %(most)s
    )
) AS due
JOIN organisations AS o USING (org_no)
GROUP BY o.org_id
ORDER BY min(due.due_at);
