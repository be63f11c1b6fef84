"""How Postgres does the work: plans and updates that stay cheap."""

from datetime import UTC, datetime

import psycopg
import pytest

from feeds.database import begin
from feeds.schema import check_ledger
from tests.integration.test_ledger import entry, post_all
from worker.commands import health
from worker.intake import sweep
from worker.ledger import dead_letters, read, write
from worker.metrics import scrape
from worker.settings import WorkerSettings


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def explain(connection, query, parameters):
    with begin(connection):
        connection.execute(read.SQL["bound_work"])
        rows = connection.execute(b"EXPLAIN " + query, parameters).fetchall()
    return "\n".join(line for (line,) in rows)


PARAMETERS = {
    "find_buried": {"streams": ["a"] * 500, "entry_ids": ["1-1"] * 500},
    "insert_organisations": {"org_ids": [f"org_{i}" for i in range(500)]},
    "lock_organisations": {"org_ids": [f"org_{i}" for i in range(500)]},
    "read_grants": {
        "org_nos": list(range(500)),
        "now": datetime.now(UTC),
        "ended_at": datetime.now(UTC),
        "ref_org_nos": [1] * 500,
        "grant_refs": ["g"] * 500,
    },
    "read_drawable": {
        "org_nos": list(range(500)),
        "after": [None] * 500,
        "first_usage_at": [None] * 500,
        "last_usage_at": [None] * 500,
        "most": 100,
    },
    "read_usages": {"ref_org_nos": [1] * 500, "usage_refs": ["u"] * 500},
    "write_organisations": {
        "org_no": [1] * 500,
        "counts": ["{1}"] * 500,
        "totals": ["{1}"] * 500,
        "grants": [1] * 500,
        "pending": [1] * 500,
        "revision": [1] * 500,
        "last_created_at": [None] * 500,
        "last_hash": [None] * 500,
    },
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("filled", [False, True], ids=["fresh", "filled, never analysed"])
def test_no_statement_of_a_posting_scans_a_table(connection, name, filled):
    if filled:
        connection.execute("INSERT INTO organisations (org_id) SELECT 'o' || n FROM generate_series(1, 2000) AS n")
    plan = explain(connection, (read.SQL | write.SQL)[name], PARAMETERS[name])
    assert "Seq Scan" not in plan
    assert "Index" in plan
    assert "JIT" not in plan


@pytest.mark.parametrize("organisations", [1, 500])
def test_known_refs_are_looked_up_by_their_index_though_the_statistics_know_grants_alone(connection, organisations):
    grants = [
        {"type": "grant", "org_id": f"org_{n}", "grant_ref": "g", "credits": 999, "source": "plan"}
        for n in range(organisations)
    ]
    post_all(connection, *grants)
    connection.execute("VACUUM (ANALYZE)")
    usage = {"type": "usage", "org_id": "org_0", "usage_kind": "ai_usage", "credits": 1}
    post_all(connection, *[usage | {"usage_ref": f"u{n}"} for n in range(900)])

    usages = explain(connection, read.SQL["read_usages"], PARAMETERS["read_usages"])
    assert usages.index("Function Scan on r ") < usages.index("Index Scan using movements_by_usage_ref")
    assert usages.count("Scan") == 2
    closed = explain(connection, read.SQL["read_grants"], PARAMETERS["read_grants"])
    assert closed.index("Function Scan on r ") < closed.index("grants_org_no_grant_ref_key")


@pytest.mark.parametrize(
    "refs",
    [
        [f"usage_01kat4{n}8g0e5xsqhhhh0000000" for n in range(8)],
        [f"019ab4{n}a-2200-7fff-8000-000000000000" for n in range(8)],
        [f"01KAT4{n}G0E5XSQHHHH0000000" for n in range(8)],
    ],
    ids=["TypeID", "UUIDv7", "ULID"],
)
def test_refs_lie_in_their_index_in_the_order_of_their_time(connection, refs):
    found = connection.execute("SELECT ref FROM unnest(%s::text[]) AS ref ORDER BY ref_key(ref)", [refs[::-1]])
    assert [ref for (ref,) in found] == refs


def test_the_search_for_due_grants_reads_one_range_of_each_index(connection):
    plan = explain(connection, sweep.SQL["find_due"], {"most": 10, "grace_s": 0})
    assert "grants_to_allot" in plan
    assert "grants_to_expire" in plan


def test_draws_update_grants_and_organisations_in_place(connection):
    def event(ref):
        return {"type": "usage", "org_id": "org_a", "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1}

    post_all(connection, {"type": "grant", "org_id": "org_a", "grant_ref": "g", "credits": 99, "source": "plan"})
    for batch in range(20):
        post_all(connection, event(f"u{batch}"))
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")
    rows = connection.execute(
        "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
        " WHERE relname IN ('grants', 'organisations') ORDER BY relname"
    ).fetchall()
    assert rows == [("grants", 20, 20), ("organisations", 21, 21)]


def test_a_movement_cannot_be_changed_or_removed(connection):
    post_all(
        connection,
        {"type": "usage", "org_id": "org_a", "usage_ref": "u", "usage_kind": "ai_usage", "credits": 1},
    )
    for statement in ["UPDATE movements SET credits = -2", "DELETE FROM movements", "TRUNCATE movements"]:
        with pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)


def test_kinds_added_later_extend_the_counts(connection):
    usage = {"type": "usage", "org_id": "org_a", "usage_ref": "u1", "usage_kind": "ai_usage", "credits": 1}
    post_all(connection, usage)
    connection.execute("INSERT INTO usage_kinds VALUES ('new_usage', 2)")
    facts = check_ledger(connection, WorkerSettings(usage_kinds=("ai_usage", "tm_usage", "new_usage")))
    with connection.transaction():
        write.post_entries(connection, facts, [entry(usage | {"usage_ref": "u2", "usage_kind": "new_usage"})])
    [(counts,)] = connection.execute("SELECT counts FROM organisations").fetchall()
    assert counts == [2, 0, 0, 2, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1]


ANY = {"code": None, "org_id": None, "limit": 100}
DEAD_LETTER_PLANS = [
    (dead_letters.SQL["list_dead_letters"], ANY | {"org_id": "org_rare"}, "dead_letters_by_organisation"),
    (dead_letters.SQL["count_dead_letters"], ANY | {"org_id": "org_rare"}, "dead_letters_by_organisation"),
    (dead_letters.SQL["list_dead_letters"], ANY | {"code": "conflict"}, "dead_letters_pkey"),
    (dead_letters.SQL["list_dead_letters"], ANY | {"code": "too_large"}, "dead_letters_by_code"),
    (scrape.SQL["count_dead_letters"], {"codes": ["conflict", "too_large"]}, "dead_letters_by_code"),
]


def test_very_many_dead_letters_are_listed_and_counted_by_an_index(connection):
    connection.execute(
        "INSERT INTO dead_letters (stream, entry_id, digest, raw, raw_bytes, org_id, code, message, added_at)"
        " SELECT 'events:{0}', n || '-0', sha256(n::text::bytea), sha512(n::text::bytea), 64,"
        " CASE WHEN n % 1000 = 0 THEN 'org_rare' ELSE 'org_a' END,"
        " CASE WHEN n % 1000 = 0 THEN 'too_large' ELSE 'conflict' END, 'a message', now()"
        " FROM generate_series(1, 50000) AS n"
    )
    connection.execute("VACUUM (ANALYZE) dead_letters")
    for query, parameters, index in DEAD_LETTER_PLANS:
        with begin(connection):
            if query is scrape.SQL["count_dead_letters"]:
                connection.execute(scrape.SQL["bound_scrape"])
            explained = [line for (line,) in connection.execute(b"EXPLAIN " + query, parameters)]
        assert any(index in line for line in explained), explained
    assert connection.execute(health.SQL["read_health"]).fetchall()[0][2] == 50_000
