"""Databases that others made: other encodings, schemas, owners and tables. Each works, or is refused in one line."""

import asyncio

import psycopg
import pytest
from psycopg import sql
from starlette.testclient import TestClient

from feeds.database import connect
from feeds.endpoint.asgi import build_app
from feeds.schema import check_ledger
from tests import servers
from tests.conftest import clear_settings
from tests.integration.command_line import run, run_json
from tests.integration.endpoint_requests import PATH, headers_of
from tests.integration.test_hostile_settings import KINDS, events_of, name_of, post, read_kinds
from worker.audit.ledger import audit_ledger
from worker.intake.streams import add, place
from worker.intake.streams import connect as connect_streams
from worker.migrations import runner
from worker.settings import WorkerSettings


@pytest.fixture
def house(environment, empty_database_url, monkeypatch):
    """Give a superuser's connection to an empty database, which is that of the commands."""
    use(monkeypatch, empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


def use(monkeypatch, url):
    monkeypatch.setenv("DATABASE_URL", url)
    clear_settings()


def set_path(house, path):
    """Set the search path that new connections to this database have."""
    house.execute(f"ALTER DATABASE {name_of(house.info.dsn)} SET search_path = {path}")


def assert_refused(words, *command):
    """Assert that a command ends with exit code 2 and one line that holds these words."""
    found = run(*command, code=2)
    [line] = found.output.strip().splitlines()
    assert words in line
    return line


def assert_posts_and_reads(redis_url):
    secret = run("keys", "create", "--org", "org_a").stdout.split()[-1]
    with connect_streams(redis_url) as streams:
        add(streams, [place(event, 8) for event in events_of("org_a")])
    run("drain")
    with TestClient(build_app()) as client:
        answer = client.get(PATH, headers=headers_of(secret))
        assert [item["kind"] for item in answer.json()["items"]] == KINDS
        assert client.get("/readyz").json() == {"status": "ready"}
    assert run_json("verify")["findings"] == []
    assert [item["kind"] for item in run_json("feed", "org_a")["items"]] == KINDS


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused_by_migrate_and_by_every_process(
    environment, postgres_url, monkeypatch, encoding
):
    name = f"usage_feeds_{encoding.lower()}"
    create = "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(sql.SQL(create).format(sql.Identifier(name), sql.Literal(encoding)))
        try:
            url = servers.with_database(postgres_url, name)
            use(monkeypatch, url)
            assert_refused(f"encoding is {encoding}, but usage-feeds needs UTF8: create a database", "migrate")
            with monkeypatch.context() as patch, connect(url, 5) as connection:
                patch.setattr(runner, "check_surroundings", lambda _: None)  # an older version has migrated it
                runner.migrate(connection, WorkerSettings())
            for command in (["health"], ["drain"], ["verify"], ["serve"], ["keys", "list"]):
                assert_refused(f"encoding is {encoding}, but usage-feeds needs UTF8", *command)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_database_whose_locale_knows_ascii_only_works(environment, postgres_url, monkeypatch, redis_url):
    create = "CREATE DATABASE usage_feeds_collated TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(create)
        try:
            use(monkeypatch, servers.with_database(postgres_url, "usage_feeds_collated"))
            run("migrate")
            assert_posts_and_reads(redis_url)
        finally:
            server.execute("DROP DATABASE usage_feeds_collated WITH (FORCE)")


def test_a_role_that_switches_triggers_off_is_refused(house):
    run("migrate")
    house.execute(f"ALTER DATABASE {name_of(house.info.dsn)} SET session_replication_role = replica")
    for command in ("health", "migrate", "drain", "serve"):
        assert_refused("session_replication_role is replica for this role or database", command)


def test_the_ledger_lies_in_the_schema_that_comes_first_in_the_search_path(house, redis_url):
    house.execute('CREATE SCHEMA "Our Credits"')
    set_path(house, '"Our Credits", public')
    run("migrate", "--roles")
    assert_posts_and_reads(redis_url)
    found = house.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN ('movements', 'ledger')")
    assert found.fetchall() == [("Our Credits",)]


def test_a_database_without_the_schema_public_works(house, redis_url):
    house.execute("DROP SCHEMA public CASCADE")
    house.execute("CREATE SCHEMA credits")
    set_path(house, "credits")
    run("migrate")
    assert_posts_and_reads(redis_url)


@pytest.mark.parametrize("path", ["''", "nowhere", "other", '"$user"', "pg_catalog", "other, pg_temp, public"])
def test_a_ledger_in_the_schema_public_is_found_with_any_search_path(house, path):
    run("migrate")
    house.execute("CREATE SCHEMA other; CREATE TABLE other.movements (); CREATE TABLE other.schema_migrations ()")
    house.execute("CREATE TABLE other.ledger (); CREATE TABLE other.organisations ()")
    set_path(house, path)
    with connect(house.info.dsn, 5) as connection:
        ledger = check_ledger(connection, WorkerSettings())
        assert len(post(connection, ledger, "org_a").movements["org_a"]) == 3
        assert asyncio.run(read_kinds(house.info.dsn, ledger, "org_a")) == KINDS
        assert audit_ledger(connection).findings == []
    assert run_json("migrate")["applied"] == []


def test_what_another_client_left_on_a_pooled_connection_does_not_matter(house):
    run("migrate")
    with connect(house.info.dsn, 5) as connection:
        ledger = check_ledger(connection, WorkerSettings())
        connection.execute("CREATE SCHEMA other; SET search_path = other; SET datestyle = 'German'")
        connection.execute("CREATE TEMP TABLE movements (); CREATE TEMP TABLE organisations ()")
        assert len(post(connection, ledger, "org_a").movements["org_a"]) == 3
        assert asyncio.run(read_kinds(house.info.dsn, ledger, "org_a")) == KINDS


def test_if_no_schema_can_be_used_the_migration_says_so(house):
    house.execute("DROP SCHEMA public CASCADE")
    assert_refused("names no schema that exists: give usage-feeds a database of its own, or create a schema", "migrate")


def test_a_schema_that_belongs_to_somebody_else_is_refused(house, monkeypatch):
    house.execute("CREATE ROLE somebody LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        url = psycopg.conninfo.make_conninfo(house.info.dsn, user="somebody")
        use(monkeypatch, url)
        assert_refused("permission denied for schema public: set DATABASE_URL to a role that has this right", "migrate")
        assert_refused("run `usage-feeds migrate`", "health")
    finally:
        house.execute("DROP OWNED BY somebody; DROP ROLE somebody")


@pytest.mark.parametrize(
    "table",
    [
        "schema_migrations (version text PRIMARY KEY); INSERT INTO schema_migrations VALUES ('20240101000000')",
        "schema_migrations (version bigint, dirty boolean); INSERT INTO schema_migrations VALUES (3, false)",
    ],
    ids=["rails", "golang-migrate"],
)
def test_a_schema_with_the_migrations_of_another_program_is_left_alone(house, redis_url, table):
    house.execute(f"CREATE TABLE {table}")
    before = house.execute("SELECT * FROM schema_migrations").fetchall()
    assert_refused("The schema public belongs to another program: it has a table schema_migrations", "migrate")
    assert_refused("The database's schema is empty", "health")
    assert house.execute("SELECT * FROM schema_migrations").fetchall() == before
    house.execute("CREATE SCHEMA credits")
    set_path(house, "credits, public")
    run("migrate")
    assert_posts_and_reads(redis_url)


def test_a_schema_with_another_table_of_our_names_is_left_alone(house):
    house.execute("CREATE TABLE grants (id bigint)")
    line = assert_refused('"grants" already exists: give usage-feeds a database of its own', "migrate")
    assert line.startswith("usage-feeds: The schema holds something else of that name")
    assert house.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchall() == [(1,)]
