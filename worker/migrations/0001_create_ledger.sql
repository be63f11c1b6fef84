-- migrate:up

-- The facts of the whole ledger, in one row. `migrate` writes it; every process compares its settings with it.
CREATE TABLE ledger (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    event_shards integer NOT NULL CHECK (event_shards BETWEEN 1 AND 1024),
    expiry_grace_s integer NOT NULL CHECK (expiry_grace_s >= 0),
    cursor_secret bytea NOT NULL CHECK (octet_length(cursor_secret) = 32)
);

-- The number of a usage kind never changes: the feeds, and the counts and totals of organisations, are numbered by it.
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

-- An organisation's row is the lock under which its ledger is written. `counts` and `totals` go by feed number (the feed
-- with number 0 is element 1): how many movements a feed has, and the sum of their credits. `pending` is what its grants
-- that start later will give. `revision` increases whenever a grant or a movement is added or changed. `last_hash` is
-- the hash of its newest movement.
CREATE TABLE organisations (
    last_created_at timestamptz NOT NULL DEFAULT 'epoch',
    grants bigint NOT NULL DEFAULT 0 CHECK (grants >= 0),
    pending bigint NOT NULL DEFAULT 0 CHECK (pending >= 0),
    revision bigint NOT NULL DEFAULT 0,
    org_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id text COLLATE "C" NOT NULL UNIQUE CHECK (org_id ~ '^[A-Za-z0-9_.:-]{1,64}$'),
    counts bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0}',
    totals bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0}',
    last_hash bytea CHECK (octet_length(last_hash) = 32)
) WITH (fillfactor = 70);

-- The credit ledger. The order of the columns avoids padding. A movement's id is not stored: feeds/movement.py derives
-- it from `created_at` and `hash`.
-- `kind` is the first letter of allot, consume, overflow, expire or revoke. (It is not an enum: an enum's comparison is
-- not leakproof, so a view that guards rows could not use its index.) `balance` is what remains of all grants after the
-- movement. `total` is the sum of the credits of the narrowest feed that the movement belongs to, up to and with it.
-- `draws` holds `grant_no:credits`, separated by commas. `hash` chains a movement to those before it:
-- worker/ledger/hash_chain.py defines it, and worker/audit/ledger.sql checks it.
CREATE TABLE movements (
    position bigint NOT NULL CHECK (position > 0),
    kind_ordinal bigint NOT NULL CHECK (kind_ordinal > 0),
    usage_ordinal bigint CHECK (usage_ordinal > 0),
    kind_usage_ordinal bigint CHECK (kind_usage_ordinal > 0),
    credits bigint NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    total bigint NOT NULL,
    created_at timestamptz NOT NULL,
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

-- The index by refs holds this in place of a usage's ref. It has two parts:
-- * Five characters near the ref's beginning, after the type of a TypeID. They put refs of the same time next to each
--   other: TypeIDs and ULIDs of half a minute, UUIDv7s of a quarter of an hour.
-- * 104 bits of the ref's SHA-256, so that every ref takes the same little room.
-- The digest without the five characters put each movement on an index page of its own: at ten million movements that
-- wrote 4 KB of WAL an event after a checkpoint, and always took a third more CPU in Postgres. Refs in the exact order
-- of their time would leave the index's pages half empty: 88 bytes a movement instead of 55.
-- `decode` reads a backslash as an escape, but no ref holds one.
CREATE FUNCTION ref_key(ref text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT
        decode(substring(split_part(ref, '_', -1) FROM 3 FOR 5), 'escape')
        || substring(sha256(decode(ref, 'escape')) FROM 1 FOR 13)
$$;

-- A usage has at most one consume and one overflow movement. Posting finds a known ref by this index, then compares the
-- content. (No other index has the order NULLS FIRST: see `read_usages` in worker/ledger/read.sql.)
CREATE UNIQUE INDEX movements_by_usage_ref ON movements (org_no, ref_key(usage_ref), kind NULLS FIRST)
WHERE usage_number IS NOT NULL;

-- The labels of a movement, as JSON. They have a table of their own so that a movement without labels stores nothing.
-- (It is text, not jsonb: the hash covers these bytes.)
CREATE TABLE movement_labels (
    position bigint NOT NULL,
    org_no integer NOT NULL,
    labels text NOT NULL CHECK (octet_length(labels) BETWEEN 2 AND 512),
    PRIMARY KEY (org_no, position)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a movement is never changed or removed' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER movements_are_final
BEFORE UPDATE OR DELETE OR TRUNCATE ON movements
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER labels_are_final
BEFORE UPDATE OR DELETE OR TRUNCATE ON movement_labels
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A grant is pending until its allot movement. Then it is open until nothing remains, or it expires, or it is revoked.
-- The positions tell where its story is: the movements that first and last drew from it, and the one that closed it.
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
    first_draw_position bigint,
    last_draw_position bigint,
    close_position bigint,
    priority smallint NOT NULL CHECK (priority BETWEEN 0 AND 100),
    open boolean NOT NULL,
    source text NOT NULL CHECK (source IN ('plan', 'promotion')),
    grant_ref text COLLATE "C" NOT NULL,
    revoke_reason text CHECK (char_length(revoke_reason) <= 200),
    labels text CHECK (octet_length(labels) BETWEEN 2 AND 512),
    PRIMARY KEY (org_no, grant_no),
    UNIQUE (org_no, grant_ref),
    CONSTRAINT an_allotted_grant_adds_up CHECK (allot_position IS NULL OR credits = drawn + expired + revoked + remaining),
    CONSTRAINT a_pending_grant_is_untouched CHECK (allot_position IS NOT NULL OR drawn + expired + revoked + remaining = 0),
    CONSTRAINT a_pending_grant_has_a_start CHECK (NOT open OR allot_position IS NOT NULL OR effective_at IS NOT NULL),
    CONSTRAINT a_closed_grant_is_empty CHECK (open OR remaining = 0),
    CONSTRAINT a_drawn_grant_has_draws CHECK (
        (drawn > 0) = (first_draw_position IS NOT NULL) AND (drawn > 0) = (last_draw_position IS NOT NULL)
    ),
    CONSTRAINT an_allotted_grant_closes_at_a_movement CHECK (
        (close_position IS NOT NULL) = (NOT open AND allot_position IS NOT NULL)
    )
) WITH (fillfactor = 70);

-- An organisation may have very many open grants. A batch reads those that are due, and then those that its usages
-- draw, in draw order, so each is one range of an index. `WHERE open`, not `WHERE remaining > 0`: each draw changes
-- `remaining`, and an index on a changed column would prevent HOT updates.
CREATE INDEX grants_in_draw_order ON grants (
    org_no, priority, COALESCE(expires_at, 'infinity'), COALESCE(effective_at, '-infinity'), allot_position
) WHERE open AND allot_position IS NOT NULL;
CREATE INDEX pending_grants ON grants (org_no, effective_at) WHERE open AND allot_position IS NULL;
CREATE INDEX ending_grants ON grants (org_no, expires_at)
WHERE open AND allot_position IS NOT NULL AND expires_at IS NOT NULL;
-- The sweep finds the grants of all organisations that are due.
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

-- There may be very many dead letters: they are listed, newest first, and counted, by code or by organisation.
CREATE INDEX dead_letters_by_code ON dead_letters (code, dead_letter_id);
CREATE INDEX dead_letters_by_organisation ON dead_letters (org_id, dead_letter_id) WHERE org_id IS NOT NULL;

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

-- Returns a page of an organisation's feed, and the feed's count at the same moment.
--
-- `of_kind` and `of_usage_number` select the feed. `element` is the feed's number + 1, because arrays count from 1.
-- `lines`, `skip`, `ceiling` and `floor` are the limit, skip, ceiling and floor of a `feeds.page.Place`. If the page is
-- empty, one row is returned in which only epoch and count are set. The function is STABLE: it reads the snapshot of
-- the statement that calls it, so count and movements are of one moment.
--
-- It is a function because Postgres caches a function's plans with the connection, also behind PgBouncer, where the
-- next client uses them too. Planning took half of a page's time. For each kind of feed one plan is good: read a range
-- of one index backwards. The settings below exclude all others, whatever the statistics of a new table are. (The
-- bounds are variables because an expression in the scan's condition is not leakproof on PostgreSQL 15: with row-level
-- security no index would then bound the scan.)
CREATE FUNCTION read_page(
    of_org_id text, of_kind "char", of_usage_number smallint, element integer,
    lines bigint, skip bigint, ceiling bigint, floor bigint
) RETURNS TABLE (
    epoch uuid, count bigint, ordinal bigint, hash bytea, kind "char", credits bigint, usage_kind text,
    usage_ref text, created_at timestamptz
) LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    of_org_no integer;
    newest bigint;
    below bigint;
BEGIN
    SELECT l.epoch, o.org_no, COALESCE(o.counts[element], 0) -- no element yet: the usage kind may be newer than the row
    INTO epoch, of_org_no, count
    FROM ledger AS l
    LEFT JOIN organisations AS o ON o.org_id = of_org_id
    WHERE l.single;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    newest := LEAST(count - skip, ceiling);
    below := GREATEST(newest - lines, floor);
    IF of_kind IS NULL AND of_usage_number IS NULL THEN
        RETURN QUERY
        SELECT epoch, count, m.position, m.hash, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.position <= newest AND m.position > below
        ORDER BY m.position DESC;
    ELSIF of_usage_number IS NULL THEN
        RETURN QUERY
        SELECT epoch, count, m.kind_ordinal, m.hash, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.kind = of_kind AND m.kind_ordinal <= newest AND m.kind_ordinal > below
        ORDER BY m.kind_ordinal DESC;
    ELSIF of_kind IS NULL THEN
        RETURN QUERY
        SELECT epoch, count, m.usage_ordinal, m.hash, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.usage_number = of_usage_number
            AND m.usage_ordinal <= newest AND m.usage_ordinal > below
        ORDER BY m.usage_ordinal DESC;
    ELSE
        RETURN QUERY
        SELECT epoch, count, m.kind_usage_ordinal, m.hash, m.kind, m.credits, u.usage_kind, m.usage_ref, m.created_at
        FROM movements AS m
        LEFT JOIN usage_kinds AS u ON u.usage_number = m.usage_number
        WHERE m.org_no = of_org_no AND m.usage_number = of_usage_number AND m.kind = of_kind
            AND m.kind_usage_ordinal <= newest AND m.kind_usage_ordinal > below
        ORDER BY m.kind_usage_ordinal DESC;
    END IF;
    IF NOT FOUND THEN
        RETURN NEXT;
    END IF;
END
$$;

-- The two searches below read one movement at a time by its place in a feed. They read it as a range of one number, in
-- order: then only the index of that feed fits, whatever the statistics are. With `=` the plan on a fresh table was a
-- scan of another index over all movements of a kind. Their settings are those of `read_page`.

-- Returns the position of an organisation's last movement up to an instant; 0 if there is none. `highest` is the position
-- of its newest movement. `created_at` never decreases with the position, so it is a binary search: about log2(n) reads.
CREATE FUNCTION find_position(of_org_no integer, instant timestamptz, highest bigint)
RETURNS bigint LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    below bigint := 0;
    above bigint := highest + 1;
    middle bigint;
    found timestamptz;
BEGIN
    WHILE above - below > 1 LOOP
        middle := (below + above) / 2;
        SELECT m.created_at INTO found
        FROM movements AS m
        WHERE m.org_no = of_org_no AND m.position BETWEEN middle AND middle
        ORDER BY m.position
        LIMIT 1;
        IF found <= instant THEN
            below := middle;
        ELSE
            above := middle;
        END IF;
    END LOOP;
    RETURN below;
END
$$;

-- Returns how many credits of a usage kind had overflowed up to a position: the total of the last overflow movement up to
-- there, as a positive number. `highest` is how many overflow movements of the kind there are. It is a binary search too.
CREATE FUNCTION find_overflow(of_org_no integer, of_usage_number smallint, up_to_position bigint, highest bigint)
RETURNS bigint LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    below bigint := 0;
    above bigint := highest + 1;
    middle bigint;
    overflow bigint := 0;
    found record;
BEGIN
    WHILE above - below > 1 LOOP
        middle := (below + above) / 2;
        SELECT m.position, m.total INTO found
        FROM movements AS m
        WHERE m.org_no = of_org_no AND m.usage_number = of_usage_number AND m.kind = 'o'
            AND m.kind_usage_ordinal BETWEEN middle AND middle
        ORDER BY m.kind_usage_ordinal
        LIMIT 1;
        IF found.position <= up_to_position THEN
            below := middle;
            overflow := -found.total;
        ELSE
            above := middle;
        END IF;
    END LOOP;
    RETURN overflow;
END
$$;
