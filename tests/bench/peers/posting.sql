-- A plain credit ledger: organisations, their grants, and the movements of both.
-- It stores less than ours: no draws, no ordinals of filtered feeds, no hash; and it has two indexes fewer.

CREATE TABLE organisations (
    id integer PRIMARY KEY,
    movements bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE TABLE grants (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id integer NOT NULL REFERENCES organisations,
    credits bigint NOT NULL CHECK (credits > 0),
    remaining bigint NOT NULL CHECK (remaining BETWEEN 0 AND credits),
    priority smallint NOT NULL DEFAULT 50,
    expires_at timestamptz
) WITH (fillfactor = 70);

CREATE INDEX grants_in_draw_order ON grants (org_id, priority, expires_at, id);

CREATE TABLE movements (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id integer NOT NULL,
    position bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('consume', 'overflow')),
    credits bigint NOT NULL CHECK (credits < 0),
    usage_kind text NOT NULL,
    usage_ref text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (org_id, position),
    UNIQUE (org_id, usage_ref, kind)
);

-- A thousand organisations, with one big grant each.
INSERT INTO organisations (id) SELECT generate_series(1, 1000);
INSERT INTO grants (org_id, credits, remaining) SELECT id, 1000000000, 1000000000 FROM organisations;

ANALYZE organisations, grants;
