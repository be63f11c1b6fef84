"""Settings of a database, of a role, or left on a pooled connection change nothing that is promised."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import count

import psycopg
import pytest
from psycopg import sql
from redis import Redis
from starlette.testclient import TestClient

from feeds.cached.epoch import read_epoch, renew_epoch
from feeds.database import READING, begin, connect
from feeds.endpoint.asgi import build_app
from feeds.keys import create_key, list_keys, remove_member, revoke_key, set_member
from feeds.page import Filter
from feeds.postgres import Postgres
from feeds.schema import check_ledger
from feeds.store import Store, read_newest
from tests import servers
from tests.integration.command_line import run, run_json
from tests.integration.endpoint_requests import PATH, headers_of
from worker.audit.ledger import audit_ledger
from worker.intake.batch import Intake
from worker.intake.drain import drain_all
from worker.intake.streams import add, place
from worker.intake.streams import connect as connect_streams
from worker.intake.sweep import find_due
from worker.ledger.dead_letters import list_dead_letters
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries
from worker.metrics import scrape
from worker.migrations.runner import migrate
from worker.process import Database
from worker.settings import WorkerSettings

HOSTILE = {
    "timezone": "Europe/Berlin",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "xmlbinary": "hex",
    "lc_numeric": "C",
    "lc_monetary": "C",
    "lc_time": "C",
    "lc_messages": "C",
    "search_path": "nowhere",
    "row_security": "off",
    "check_function_bodies": "off",
    "exit_on_error": "on",
    "session_replication_role": "local",
    "plpgsql.extra_errors": "all",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "statement_timeout": "100ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "transaction_timeout": "100ms",
    "idle_session_timeout": "3s",
    "deadlock_timeout": "1ms",
    "client_min_messages": "debug1",
    "work_mem": "64kB",
    "maintenance_work_mem": "1MB",
    "temp_buffers": "800kB",
    "temp_file_limit": "0",
    "default_toast_compression": "pglz",
    "stats_fetch_consistency": "none",
    "plan_cache_mode": "force_generic_plan",
    "constraint_exclusion": "on",
    "debug_parallel_query": "on",
    "max_parallel_workers_per_gather": "0",
    "geqo_threshold": "2",
    "join_collapse_limit": "1",
    "from_collapse_limit": "1",
    "random_page_cost": "1000",
    "cpu_tuple_cost": "1000",
    "jit": "on",
    "jit_above_cost": "0",
    "enable_seqscan": "off",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_hashagg": "off",
    "enable_sort": "off",
    "enable_material": "off",
    "enable_memoize": "off",
}
"""The worst value of every setting that a role or database can carry and that any statement of ours may meet."""
HISTORY = [
    {"type": "grant", "grant_ref": "g1", "credits": 5, "source": "plan", "expires_at": "8000-01-01T00:00:00Z"},
    {"type": "grant", "grant_ref": "g2", "credits": 5, "source": "plan", "effective_at": "8000-01-01T00:00:00+02:00"},
    {"type": "usage", "usage_ref": "u1", "usage_kind": "ai_usage", "credits": 7},
    {"type": "revoke", "grant_ref": "g2", "reason": 'back\\slash, "quote", emoji \U0001f600'},
    {"type": "revoke", "grant_ref": "unknown"},
]
KINDS = ["overflow", "consume", "allot"]
numbers = count(1)


def impose(server, name, settings):
    """Give a database these settings; new connections have them. Settings that this server does not know are left."""
    server.execute("LOAD 'plpgsql'")
    known = {setting.lower() for (setting,) in server.execute("SELECT name FROM pg_settings").fetchall()}
    change = sql.SQL("ALTER DATABASE {} SET {} = {}")
    for setting in settings.keys() & known:
        value = sql.SQL(settings[setting]) if setting == "search_path" else sql.Literal(settings[setting])
        server.execute(change.format(sql.Identifier(name), sql.SQL(setting), value))


def name_of(url):
    return psycopg.conninfo.conninfo_to_dict(url)["dbname"]


@pytest.fixture(scope="module")
def server(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def shared_url(postgres_url, template):
    """Give the URL of a migrated database that the tests of this module share."""
    with servers.fresh_database(postgres_url, template) as name:
        yield servers.with_database(postgres_url, name)


@pytest.fixture
def hostile(environment, server):
    """Give an environment whose database has every hostile setting."""
    impose(server, name_of(environment["DATABASE_URL"]), HOSTILE)
    return environment


def events_of(org_id, history=HISTORY):
    return [event | {"org_id": org_id} for event in history]


def post(connection, ledger, org_id):
    entries = [Entry("s", f"{next(numbers)}-0", place(event, 8)[1]) for event in events_of(org_id)]
    with begin(connection):
        return post_entries(connection, ledger, entries)


async def read_kinds(url, ledger, org_id):
    postgres = Postgres(url, schema=ledger.schema, isolation=ledger.isolation)
    try:
        found = await read_newest(Store(postgres, ledger.usage_numbers), org_id, Filter(), 10)
    finally:
        await postgres.close()
    return [kind for item in found.items for kind in KINDS if f'"kind":"{kind}"'.encode() in item]


@pytest.mark.parametrize("setting", HOSTILE)
def test_no_setting_changes_what_is_posted_and_read(server, shared_url, setting):
    name, org_id = name_of(shared_url), f"org_{setting}"
    impose(server, name, {setting: HOSTILE[setting]})
    try:
        with connect(shared_url, 5) as connection:
            ledger = check_ledger(connection, WorkerSettings())
            posted = post(connection, ledger, org_id)
            assert [refusal.reason.code for refusal in posted.refusals] == ["unknown_grant"]
            assert [letter.code for letter in list_dead_letters(connection, org_id=org_id)[0]] == ["unknown_grant"]
            assert post(connection, ledger, org_id).movements == {}
            assert find_due(connection, ledger) == []
            assert asyncio.run(read_kinds(shared_url, ledger, org_id)) == KINDS
            assert audit_ledger(connection, org_id).findings == []
    finally:
        server.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(name)))


def test_everything_works_on_a_database_with_every_hostile_setting_at_once(hostile, redis_url):
    run("migrate", "--roles")
    secret = run("keys", "create", "--org", "org_a").stdout.split()[-1]
    with Redis.from_url(redis_url) as streams:
        add(streams, [place(event, 8) for event in events_of("org_a")])
    run("drain")
    with TestClient(build_app([scrape.measure])) as client:
        answer = client.get(PATH, headers=headers_of(secret))
        assert [item["kind"] for item in answer.json()["items"]] == KINDS
        assert client.get("/readyz").json() == {"status": "ready"}
        metrics = client.get("/metrics").text
    assert 'usage_feeds_dead_letters{code="unknown_grant"} 1.0' in metrics
    assert 'usage_feeds_server_up{server="postgres"} 1.0' in metrics
    assert [key["last_used_at"] is not None for key in run_json("keys", "list")["keys"]] == [True]
    assert [item["kind"] for item in run_json("feed", "org_a")["items"]] == KINDS
    assert run_json("balance", "org_a")["remaining"] == 0
    assert [grant["state"] for grant in run_json("grants", "org_a")] == ["revoked", "spent"]
    assert run_json("dead", "list")["total"] == 1
    run("dead", "replay", "--all", code=1)
    assert run_json("verify")["findings"] == []
    assert run_json("health", "--max-sweep-age", "1e9", code=1)["last_batch_s"] < 60
    run("rebuild")
    run("members", "set", "org_a", "me", "owner")
    run("dead", "discard", "--all")
    assert run_json("migrate")["applied"] == []


def test_a_database_with_every_hostile_setting_can_become_a_ledger(empty_database_url, server):
    impose(server, name_of(empty_database_url), HOSTILE)
    with connect(empty_database_url, 5) as connection:
        assert migrate(connection, WorkerSettings())
        assert check_ledger(connection, WorkerSettings()).schema == "public"


def test_nothing_stays_set_on_the_connection(shared_url, redis_url, monkeypatch):
    """Behind PgBouncer in transaction mode the next client gets it with all that was set."""
    with connect(shared_url, 5) as connection, connect_streams(redis_url) as streams:
        ledger = check_ledger(connection, WorkerSettings())
        add(streams, [place(event, 8) for event in events_of("org_left")])
        drain_all(Intake(connection, streams, ledger, lambda *_: None, lambda: None))
        post(connection, ledger, "org_left_2")
        find_due(connection, ledger)
        audit_ledger(connection)
        renew_epoch(connection, read_epoch(connection))
        key, _ = create_key(connection, org_id="org_left")
        revoke_key(connection, key.key_id)
        list_keys(connection)
        set_member(connection, "org_left", "me", "owner")
        remove_member(connection, "org_left", "me")
        list_dead_letters(connection)
        migrate(connection, WorkerSettings())
        monkeypatch.setattr(scrape, "connect_database", lambda *_: nullcontext(connection))
        assert "postgres" in str(list(scrape.ledger_metrics()))
        left = connection.execute("SELECT name, setting FROM pg_settings WHERE source = 'session'").fetchall()
    assert left == []


def test_a_transaction_is_read_committed_and_durable_whatever_is_the_default(server, shared_url):
    name = name_of(shared_url)
    shown = (
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " current_setting('synchronous_commit'), replace(current_setting('search_path'), '\"', '')"
    )
    impose(server, name, HOSTILE)
    try:
        with connect(shared_url, 5) as connection:
            with begin(connection):
                assert connection.execute(shown).fetchone() == ("read committed", "off", "on", "public, pg_temp")
            with begin(connection, READING), connection.pipeline():
                read = connection.execute(shown).fetchone()
            assert read == ("read committed", "on", "on", "public, pg_temp")
            with pytest.raises(psycopg.errors.DivisionByZero), begin(connection):
                connection.execute("SELECT 1 / 0")
            with begin(connection):
                with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
                    connection.execute("SELECT 1 / 0")
                assert connection.execute(shown).fetchone()[0] == "read committed"
                with pytest.raises(psycopg.ProgrammingError), begin(connection):
                    pass
        impose(server, name, {"synchronous_commit": "remote_apply"})
        with connect(shared_url, 5) as connection, begin(connection):
            assert connection.execute(shown).fetchone()[2] == "remote_apply"
    finally:
        server.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(name)))


def test_drains_at_the_same_time_do_not_fail_on_a_database_whose_default_is_serializable(hostile, redis_url, caplog):
    events = [
        {"type": "usage", "org_id": f"org_{n % 40}", "usage_ref": f"u{n}", "usage_kind": "ai_usage", "credits": 1}
        for n in range(8000)
    ]
    with Redis.from_url(redis_url) as streams:
        add(streams, [place(event, 8) for event in events])

    def work(_):
        with connect(hostile["DATABASE_URL"], 5) as connection, connect_streams(redis_url) as streams:
            ledger = check_ledger(connection, WorkerSettings())
            drain_all(Intake(connection, streams, ledger, lambda *_: None, lambda: None))

    with caplog.at_level(logging.INFO, "psycopg"), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert caplog.records == []
    with connect(hostile["DATABASE_URL"], 5) as connection:
        assert connection.execute("SELECT count(*) FROM public.movements").fetchone() == (8000,)
        assert audit_ledger(connection).findings == []


def test_a_connection_that_the_server_has_closed_is_replaced_before_it_is_lent(server, shared_url, wait_until):
    impose(server, name_of(shared_url), {"idle_session_timeout": "20ms"})
    database = Database(shared_url)
    try:
        with database.connection() as connection:
            first = connection.info.backend_pid
        wait_until(lambda: not server.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [first]).fetchall())
        with database.connection() as connection, begin(connection, READING):
            assert connection.info.backend_pid != first
    finally:
        database.close()
        server.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(name_of(shared_url))))
