-- migrate:up

-- The facts of the whole ledger, in one row. `migrate` writes it; every process compares its settings with it.
CREATE TABLE ledger (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    event_shards integer NOT NULL CHECK (event_shards BETWEEN 1 AND 1024),
    expiry_grace_s integer NOT NULL CHECK (expiry_grace_s >= 0),
    cursor_secret bytea NOT NULL CHECK (octet_length(cursor_secret) = 32)
);

-- The number of a usage kind never changes: the feeds, and the counts of organisations, are numbered by it.
CREATE TABLE usage_kinds (
    usage_kind text COLLATE "C" PRIMARY KEY CHECK (usage_kind ~ '^[a-z][a-z0-9_]{0,63}$'),
    usage_number smallint NOT NULL UNIQUE CHECK (usage_number >= 0)
);

-- One row a shard. Its row lock is the lease of the drain that posts the shard. `last_entry_id` is a hint: the last
-- entry of the stream that was posted.
CREATE TABLE stream_offsets (
    shard integer PRIMARY KEY CHECK (shard >= 0),
    last_entry_id text NOT NULL DEFAULT '0-0',
    moved_at timestamptz NOT NULL DEFAULT 'epoch'
) WITH (fillfactor = 50);

-- An organisation's row is the lock under which its ledger is written.
-- `counts` holds the number of movements in each of its feeds, by feed number (the feed with number 0 is element 1).
-- `last_hash` is the hash of its newest movement.
CREATE TABLE organisations (
    last_created_at timestamptz NOT NULL DEFAULT 'epoch',
    grants bigint NOT NULL DEFAULT 0 CHECK (grants >= 0),
    org_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id text COLLATE "C" NOT NULL UNIQUE CHECK (org_id ~ '^[A-Za-z0-9_.:-]{1,64}$'),
    counts bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0}',
    last_hash bytea CHECK (octet_length(last_hash) = 32)
) WITH (fillfactor = 70);

-- The first half of a ref's SHA-256. The index holds it in place of the ref, so that every ref takes 16 bytes there.
-- `decode` reads a backslash as an escape, but no ref holds one.
CREATE FUNCTION ref_digest(ref text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT substring(sha256(decode(ref, 'escape')) FROM 1 FOR 16)
$$;

-- The credit ledger. The order of the columns avoids padding.
-- `kind` is the first letter of allot, consume, overflow, expire or revoke. (It is not an enum: an enum's comparison is
-- not leakproof, so a view that guards rows could not use its index.) `draws` holds `grant_no:credits`, separated by
-- commas. `hash` chains a movement to those before it: worker/ledger/hash_chain.py defines it, and
-- worker/audit/ledger.sql checks it.
CREATE TABLE movements (
    position bigint NOT NULL CHECK (position > 0),
    kind_ordinal bigint NOT NULL CHECK (kind_ordinal > 0),
    usage_ordinal bigint CHECK (usage_ordinal > 0),
    kind_usage_ordinal bigint CHECK (kind_usage_ordinal > 0),
    credits bigint NOT NULL,
    created_at timestamptz NOT NULL,
    movement_id uuid NOT NULL,
    org_no integer NOT NULL,
    usage_number smallint,
    kind "char" NOT NULL CHECK (kind IN ('a', 'c', 'o', 'e', 'r')),
    usage_ref text COLLATE "C" NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    draws text COLLATE "C" CHECK (draws ~ '^[1-9][0-9]*:[1-9][0-9]*(,[1-9][0-9]*:[1-9][0-9]*)*$'),
    PRIMARY KEY (org_no, position) WITH (fillfactor = 100),
    CONSTRAINT credits_are_signed CHECK (CASE WHEN kind = 'a' THEN credits > 0 ELSE credits < 0 END),
    CONSTRAINT usage_lines_have_a_usage_kind CHECK (
        (kind IN ('c', 'o')) = (usage_number IS NOT NULL)
        AND (usage_number IS NULL) = (usage_ordinal IS NULL)
        AND (usage_number IS NULL) = (kind_usage_ordinal IS NULL)
    ),
    CONSTRAINT consume_lines_have_draws CHECK ((kind = 'c') = (draws IS NOT NULL))
);

-- The primary key and the next three indexes fill their pages: an organisation's new movements always come after its
-- others.
CREATE UNIQUE INDEX movements_by_kind ON movements (org_no, kind, kind_ordinal) WITH (fillfactor = 100);
CREATE UNIQUE INDEX movements_by_usage_kind ON movements (org_no, usage_number, usage_ordinal)
WITH (fillfactor = 100) WHERE usage_number IS NOT NULL;
CREATE UNIQUE INDEX movements_by_kind_and_usage_kind ON movements (org_no, usage_number, kind, kind_usage_ordinal)
WITH (fillfactor = 100) WHERE usage_number IS NOT NULL;
-- A usage has at most one consume and one overflow movement. Posting finds a known ref by this index, then compares the
-- content. (No other index has the order NULLS FIRST: see `read_usages` in worker/ledger/write.sql.)
CREATE UNIQUE INDEX movements_by_usage_ref ON movements (org_no, ref_digest(usage_ref), kind NULLS FIRST)
WHERE usage_number IS NOT NULL;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a movement is never changed or removed' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER movements_are_final
BEFORE UPDATE OR DELETE OR TRUNCATE ON movements
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A grant is pending until its allot movement. Then it is open until nothing remains, or it expires, or it is revoked.
CREATE TABLE grants (
    org_no integer NOT NULL REFERENCES organisations,
    grant_no bigint NOT NULL CHECK (grant_no > 0),
    credits bigint NOT NULL CHECK (credits > 0),
    remaining bigint NOT NULL CHECK (remaining >= 0),
    drawn bigint NOT NULL DEFAULT 0 CHECK (drawn >= 0),
    expired bigint NOT NULL DEFAULT 0 CHECK (expired >= 0),
    revoked bigint NOT NULL DEFAULT 0 CHECK (revoked >= 0),
    effective_at timestamptz,
    expires_at timestamptz CHECK (expires_at > effective_at),
    allot_position bigint CHECK (allot_position > 0),
    priority smallint NOT NULL CHECK (priority BETWEEN 0 AND 100),
    open boolean NOT NULL,
    source text NOT NULL CHECK (source IN ('plan', 'promotion')),
    grant_ref text COLLATE "C" NOT NULL,
    revoke_reason text CHECK (char_length(revoke_reason) <= 200),
    PRIMARY KEY (org_no, grant_no),
    UNIQUE (org_no, grant_ref),
    CONSTRAINT an_allotted_grant_adds_up CHECK (allot_position IS NULL OR credits = drawn + expired + revoked + remaining),
    CONSTRAINT a_pending_grant_is_untouched CHECK (allot_position IS NOT NULL OR drawn + expired + revoked + remaining = 0),
    CONSTRAINT a_pending_grant_has_a_start CHECK (NOT open OR allot_position IS NOT NULL OR effective_at IS NOT NULL),
    CONSTRAINT a_closed_grant_is_empty CHECK (open OR remaining = 0)
) WITH (fillfactor = 70);

-- `WHERE open`, not `WHERE remaining > 0`: each draw changes `remaining`, so an index on it would prevent HOT updates.
CREATE INDEX open_grants ON grants (org_no) WHERE open;
CREATE INDEX grants_to_allot ON grants (effective_at) WHERE open AND allot_position IS NULL;
CREATE INDEX grants_to_expire ON grants (expires_at) WHERE open AND allot_position IS NOT NULL AND expires_at IS NOT NULL;

-- Events that could not be posted. `raw` holds the bytes that arrived, up to 64 KiB; `raw_bytes` is their full length.
CREATE TABLE dead_letters (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL,
    entry_id text NOT NULL,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    raw bytea NOT NULL CHECK (octet_length(raw) <= 65536),
    raw_bytes bigint NOT NULL,
    org_id text,
    code text NOT NULL,
    message text NOT NULL,
    fields jsonb NOT NULL DEFAULT '{}',
    added_at timestamptz NOT NULL,
    buried_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (stream, entry_id, digest)
);
