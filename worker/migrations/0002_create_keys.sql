-- migrate:up

-- API keys. The secret is never stored: `digest` is the SHA-256 of the whole key.
-- `rate` is how many requests a second the key may make; NULL is no limit.
CREATE TABLE api_keys (
    key_id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    org_id text COLLATE "C" REFERENCES organisations (org_id),
    user_id text COLLATE "C" CHECK (user_id ~ '^[A-Za-z0-9_.:@+-]{1,128}$'),
    permissions text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    rate integer CHECK (rate BETWEEN 1 AND 100000),
    CONSTRAINT a_key_is_of_an_organisation_or_a_person CHECK (num_nonnulls(org_id, user_id) = 1)
);

-- The roles of people in organisations.
CREATE TABLE members (
    org_id text COLLATE "C" NOT NULL REFERENCES organisations (org_id),
    user_id text COLLATE "C" NOT NULL CHECK (user_id ~ '^[A-Za-z0-9_.:@+-]{1,128}$'),
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'billing', 'member')),
    PRIMARY KEY (org_id, user_id)
);
