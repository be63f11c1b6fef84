-- A million movements of one organisation, newest last, and the index that pages of them need.

CREATE TABLE credit_entries (
    id text NOT NULL,
    org_id text NOT NULL,
    kind text NOT NULL,
    credits bigint NOT NULL,
    usage_kind text,
    usage_ref text NOT NULL,
    created_at timestamptz NOT NULL
);

INSERT INTO credit_entries (id, org_id, kind, credits, usage_kind, usage_ref, created_at)
SELECT
    'cent_01' || substr(md5(n::text), 1, 24), 'org_bench', 'consume', -10, 'ai_usage',
    'usage_01' || substr(md5('usage' || n), 1, 24), timestamptz '2026-06-01 10:00:00Z' + n * interval '1 second'
FROM generate_series(1, 1000000) AS n;

ALTER TABLE credit_entries ADD PRIMARY KEY (id);
CREATE INDEX credit_entries_newest ON credit_entries (org_id, created_at DESC, id DESC);
