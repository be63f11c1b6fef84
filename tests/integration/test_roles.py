"""What may the roles of worker and reader do in the database?"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from urllib.request import Request, urlopen

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from feeds.movement import Kind
from feeds.page import Filter, Place
from feeds.postgres import Postgres
from feeds.store import Store, page_query, read_place
from tests.integration.nested_plans import scans_of
from tests.integration.test_ledger import post_all
from tests.seed import MIXED, USAGE_KINDS, seed
from tests.servers import wait_until
from worker.migrations.roles import ROLES, create_roles

NUMBERS = {kind: number for number, kind in enumerate(USAGE_KINDS)}
WORKER, READER = ROLES


@pytest.fixture
def owner(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        create_roles(connection)
        for org_id in ("org_a", "org_b"):
            seed(connection, org_id, MIXED * 3)
        yield connection


@pytest.fixture
def login(owner, database_url):
    """Give the function that creates a user with a role and returns its address. The users are dropped afterwards."""
    users = []

    def create_user(role):
        user = f"{role}_{os.getpid()}_{len(users)}"
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' IN ROLE {}").format(*map(sql.Identifier, (user, role)))
        )
        users.append(user)
        return make_conninfo(database_url, user=user, password="x")

    yield create_user
    owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY(%s)", [users])
    for user in users:
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


@pytest.fixture
def worker(login):
    with psycopg.connect(login(WORKER), autocommit=True) as connection:
        yield connection


@pytest.fixture
def reader(login):
    with psycopg.connect(login(READER), autocommit=True) as connection:
        yield connection


def tables(connection):
    return [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]


def test_creating_the_roles_again_four_times_at_once_changes_nothing(owner, database_url):
    rights = "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
    before = owner.execute(rights).fetchall()
    together = Barrier(4)

    def run(_):
        with psycopg.connect(database_url, autocommit=True) as connection:
            together.wait(timeout=10)
            create_roles(connection)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))

    assert owner.execute(rights).fetchall() == before
    policies = owner.execute("SELECT tablename, policyname FROM pg_policies ORDER BY 1, 2").fetchall()
    assert policies == [
        (table, policy)
        for table in ("grants", "movement_labels", "movements", "organisations")
        for policy in ("reader_sees_its_own", "worker_sees_all")
    ]


def test_the_worker_can_read_every_table(owner):
    for table in tables(owner):
        assert owner.execute("SELECT has_table_privilege(%s, %s, 'SELECT')", [WORKER, table]).fetchone() == (True,), (
            table
        )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE movements SET credits = -2",
        "DELETE FROM movements",
        "TRUNCATE movements",
        "ALTER TABLE movements DISABLE TRIGGER movements_are_final",
        "DROP TABLE movements",
        "DELETE FROM grants",
        "DELETE FROM organisations",
        "UPDATE organisations SET org_id = 'org_c'",
        "UPDATE grants SET credits = 1",
        "UPDATE ledger SET cursor_secret = cursor_secret",
        "UPDATE api_keys SET digest = digest",
        "DELETE FROM schema_migrations",
    ],
)
def test_the_worker_cannot_change_what_was_written(worker, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute(statement)


def test_the_reader_can_write_only_when_a_key_was_last_used(owner, reader):
    for table in tables(owner):
        for right in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
            found = owner.execute("SELECT has_table_privilege(%s, %s, %s)", [READER, table, right])
            assert found.fetchone() == (False,), (table, right)
    columns = owner.execute(
        "SELECT table_name::text, column_name::text FROM information_schema.column_privileges"
        " WHERE grantee = %s AND privilege_type <> 'SELECT'",
        [READER],
    )
    assert columns.fetchall() == [("api_keys", "last_used_at")]
    reader.execute("UPDATE api_keys SET last_used_at = now() WHERE false")


READ_ALL = [
    "SELECT usage_ref FROM movements",
    "SELECT usage_ref FROM movements WHERE org_no IN (1, 2)",
    "SELECT org_id FROM organisations",
    "SELECT org_id FROM organisations WHERE org_id = 'org_b' OR true",
]


@pytest.mark.parametrize("query", READ_ALL)
def test_the_reader_sees_no_rows_before_it_names_an_organisation(reader, query):
    assert reader.execute(query).fetchall() == []


def test_a_query_without_a_condition_returns_only_the_named_organisations_rows(owner, reader):
    with reader.transaction():
        reader.execute("SELECT set_config('usage_feeds.org_id', 'org_a', true)")
        assert reader.execute("SELECT org_id FROM organisations").fetchall() == [("org_a",)]
        [(own,)] = owner.execute("SELECT org_no FROM organisations WHERE org_id = 'org_a'").fetchall()
        assert set(reader.execute("SELECT org_no FROM movements").fetchall()) == {(own,)}
        assert reader.execute("SELECT FROM movements WHERE org_no <> %s", [own]).fetchall() == []
    assert reader.execute("SELECT FROM movements").fetchall() == []


def read_as(address, use):
    """Return what `use(postgres)` returns, with a connection to an address."""

    async def run_use():
        postgres = Postgres(address, deadline_s=10)
        try:
            return await use(postgres)
        finally:
            await postgres.close()

    return asyncio.run(run_use())


def test_a_read_for_one_organisation_never_returns_another_organisations_rows(login):
    async def use(postgres):
        store = Store(postgres, NUMBERS)
        found = [await read_place(store, org_id, Filter(), Place(5)) for org_id in ("org_a", "org_b")]
        query, parameters = page_query(NUMBERS, "org_b", Filter(), Place(5))
        return found, await postgres.fetch(query, parameters, org_id="org_a"), await postgres.fetch(query, parameters)

    found, of_another, of_none = read_as(login(READER), use)

    assert [read.total for read in found] == [len(MIXED) * 3] * 2
    assert [row[1:3] for row in of_another] == [row[1:3] for row in of_none] == [(0, None)]


@pytest.mark.parametrize(
    "feed", [Filter(), Filter(Kind.CONSUME), Filter(None, "ai_usage"), Filter(Kind.CONSUME, "ai_usage")]
)
def test_with_row_level_security_a_page_is_still_one_range_of_one_index(owner, feed):
    seed(owner, "org_a", MIXED * 500)
    owner.execute("ANALYZE")

    [scan, *others] = scans_of(
        owner, "movements", *page_query(NUMBERS, "org_a", feed, Place(20, skip=100)), role=READER
    )

    assert not others
    assert (scan["Node Type"], scan["Scan Direction"], scan["Actual Rows"]) == ("Index Scan", "Backward", 20)
    assert "Filter" not in scan


def test_the_roles_need_no_right_that_public_has(owner, login):
    owner.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC")
    usage = {"type": "usage", "org_id": "org_a", "usage_ref": "u", "usage_kind": "ai_usage", "credits": 1}

    with psycopg.connect(login(WORKER), autocommit=True) as connection:
        assert post_all(connection, usage).movements["org_a"]

    for role in ROLES:
        found = read_as(login(role), lambda postgres: read_place(Store(postgres, NUMBERS), "org_a", Filter(), Place(1)))
        assert found.total == len(MIXED) * 3 + 1


def test_the_server_bounds_the_endpoints_waits_too(login):
    async def use(postgres):
        return await postgres.fetch(
            b"SELECT current_setting('statement_timeout'), current_setting('lock_timeout')", {}
        ), await postgres.fetch(b"SELECT pg_sleep(0)", {})

    assert read_as(login(READER), use)[0] == [("2s", "1s")]


def run(processes, *arguments, code=0):
    """Run a command as a process of its own, and return what it printed."""
    process = processes.command(*arguments)
    assert process.wait(timeout=60) == code, processes.output(process)
    return processes.output(process)


def test_worker_schedule_endpoint_and_commands_work_with_the_roles(processes, login, environment):
    processes.environment = environment | {
        "DATABASE_URL": login(WORKER),
        "READER_DATABASE_URL": login(READER),
    }
    processes.worker()
    processes.schedule()
    base = processes.endpoint()
    key = run(processes, "keys", "create", "--org", "org_new").split()[-1]
    run(processes, "grant", "org_new", "100", "--ref", "plan")
    run(processes, "usage", "org_new", "ai_usage", "30", "--ref", "u1")

    def is_published():
        request = Request(f"{base}/credits/usage", headers={"Authorization": f"Bearer {key}"})
        with urlopen(request, timeout=5) as answer:
            items = json.load(answer)["items"]
        return [(item["kind"], item["usage_ref"]) for item in items] == [("consume", "u1"), ("allot", "plan")]

    wait_until(is_published, within_s=15)
    run(processes, "revoke", "org_new", "plan")
    run(processes, "usage", "org_new", "ai_usage", "31", "--ref", "u1")
    wait_until(lambda: "conflict" in run(processes, "dead", "list"), within_s=15)
    run(processes, "dead", "replay", "--all", code=1)
    for command in (
        ["drain"], ["feed", "org_new"], ["balance", "org_new"], ["grants", "org_new"], ["verify", "org_new"], ["health"],
        ["keys", "list"], ["members", "set", "org_new", "ann", "owner"], ["members", "set", "org_new", "ann", "billing"],
        ["members", "remove", "org_new", "ann"], ["dead", "list"],
        ["dead", "discard", "--all"], ["rebuild"],
    ):  # fmt: skip
        run(processes, *command)
