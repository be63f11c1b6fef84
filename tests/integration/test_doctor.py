"""The doctor finds what is wrong on real servers, changes nothing, and shows no secret."""

import os
import re

import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conftest import clear_settings
from tests.integration.command_line import run, run_json
from tests.integration.feed_ledger import own_server
from tests.servers import CHECKOUT, fresh_database, with_database
from worker.broker.transport import CONSUMERS, HELD
from worker.doctor.database_rights import (
    READER_NEEDS,
    WORKER_NEEDS,
    format_right,
    judge_reader,
    judge_worker,
    read_role,
)
from worker.doctor.finding import Level
from worker.doctor.pooler import bounded, judge_backends, read_backends
from worker.doctor.redis_rights import needs_of, read_refused
from worker.doctor.redis_server import BROKER, FEEDS, STREAMS
from worker.migrations.roles import ROLES, create_roles

UNSAFE = {"fsync", "full_page_writes"}
"""What the tests' own Postgres has switched off."""


def found(document, *levels):
    """Return the names of the findings of these levels."""
    return {finding["name"] for finding in document["findings"] if finding["level"] in levels}


def dump(client):
    """Return all keys with their contents, but for what Celery itself notes of its consumers."""
    return {key: client.dump(key) for key in client.scan_iter() if not key.startswith(b"_kombu")}


def test_in_a_sound_set_up_only_the_servers_own_dangers_are_to_mend(environment):
    document = run_json("doctor", code=1)

    assert (document["sound"], document["reachable"]) == (False, True)
    assert found(document, "mend") == UNSAFE
    assert found(document, "ok") >= {"versions", "version", "ledger", "append_only", "rights", "keys", "clocks"}
    assert all(finding["why"] and finding["to_do"] for finding in document["findings"] if finding["level"] != "ok")


def test_what_lies_in_redis_and_how_it_is_set_is_judged_and_left_as_it_is(environment):
    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.xadd("events:{12}", {"event": "{}"})
        client.hset("feeds:other:{org_a}", "gen", "x")
        client.set("session:geheim", "geheim")
        client.lpush("drains\x06\x163", "message")
        client.zadd("unacked_index", {"old": client.time()[0] - 700})
        client.lpush(f"{HELD}dead", "message")
        client.hset(CONSUMERS, "alive", client.time()[0])
        client.config_set("maxmemory-policy", "allkeys-lru")
        before = dump(client)
        try:
            document = run_json("doctor", code=1)
            printed = run("doctor", code=1).stdout
        finally:
            client.config_set("maxmemory-policy", "noeviction")
        after = dump(client)

    assert after == before
    assert found(document, "mend") == {*UNSAFE, "shards", "eviction", "queues"}
    assert found(document, "note") >= {"stamps", "keys", "queues", "workers"}
    assert "geheim" not in printed
    assert "\x1b" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("  mend  ")]
    assert len(lines) == 5
    assert printed.splitlines()[-1].startswith("5 things to mend, ")


def test_a_server_out_of_reach_ends_with_code_2_and_the_others_are_looked_at(environment, monkeypatch):
    monkeypatch.setenv("FEEDS_REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    monkeypatch.setenv("READER_DATABASE_URL", "postgresql://someone:geheim@127.0.0.1:1/ledger")
    clear_settings()

    result = run("doctor", code=2)

    assert "geheim" not in result.output
    assert "Postgres for the endpoint at 127.0.0.1:1/ledger\n  mend  It cannot be reached: Connection refused." in (
        result.stdout
    )
    assert re.search(r"Redis at 127\.0\.0\.1:1/0, for feeds\n  mend  It cannot be reached: .*refused", result.stdout)
    assert "The schema is up to date" in result.stdout
    assert "for streams and broker" in result.stdout


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
def test_without_an_address_one_line_says_which_to_set(environment, monkeypatch, variable):
    monkeypatch.setenv(variable, "")
    clear_settings()

    assert run("doctor", code=2).stderr.endswith(f"is set: start `usage-feeds up`, or set {variable}.\n")


def test_a_ledger_of_other_facts_or_without_a_schema_is_to_mend(environment, monkeypatch, empty_database_url):
    monkeypatch.setenv("EVENT_SHARDS", "4")
    clear_settings()
    [differs] = [each for each in run_json("doctor", code=1)["findings"] if each["name"] == "ledger"]
    assert differs["what"] == "EVENT_SHARDS is 4 here, but 8 in the ledger."

    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    clear_settings()
    [empty] = [each for each in run_json("doctor", code=1)["findings"] if each["name"] == "ledger"]
    assert empty["to_do"] == "Run `usage-feeds migrate`."


def test_an_endpoint_that_reads_another_ledger_or_none_is_to_mend(
    environment, monkeypatch, postgres_url, template, empty_database_url
):
    with fresh_database(postgres_url, template) as name:
        other = with_database(postgres_url, name)
        with psycopg.connect(other) as connection:
            connection.execute("UPDATE ledger SET epoch = gen_random_uuid()")
        for url, expected in ((other, "ledger"), (empty_database_url, "refused")):
            monkeypatch.setenv("READER_DATABASE_URL", url)
            clear_settings()
            assert found(run_json("doctor", code=1), "mend") == {*UNSAFE, expected}


@pytest.fixture
def owner(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        create_roles(connection)
        yield connection


@pytest.fixture
def login(owner, database_url):
    """Give the function that opens a connection as a user with a role. The users are dropped afterwards."""
    opened = []

    def connect(role):
        user = f"{role}_doctor_{os.getpid()}"
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' IN ROLE {}").format(*map(sql.Identifier, (user, role)))
        owner.execute(create)
        address = make_conninfo(database_url, user=user, password="x")
        opened.append((user, psycopg.connect(address, autocommit=True)))
        return opened[-1][1]

    yield connect
    for user, connection in opened:
        connection.close()
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


def test_the_roles_that_migrate_creates_have_what_the_doctor_asks_for_and_no_more(owner, login):
    for role, needs, judge in zip(ROLES, (WORKER_NEEDS, READER_NEEDS), (judge_worker, judge_reader), strict=True):
        [finding] = judge(read_role(login(role), needs))
        assert finding.level is Level.OK, finding
        granted = owner.execute(
            "SELECT privilege_type, table_name, NULL FROM information_schema.role_table_grants WHERE grantee = %(role)s"
            " UNION SELECT privilege_type, table_name, column_name FROM information_schema.column_privileges AS c"
            " WHERE grantee = %(role)s AND NOT EXISTS (SELECT FROM information_schema.role_table_grants AS t"
            " WHERE t.grantee = c.grantee AND (t.privilege_type, t.table_name) = (c.privilege_type, c.table_name))",
            {"role": role},
        ).fetchall()
        assert {format_right(right) for right in granted} == {format_right(right) for right in needs}


def test_a_role_that_lacks_a_right_or_a_policy_is_to_mend(owner, login):
    worker, reader = map(login, ROLES)
    assert judge_worker(read_role(reader, WORKER_NEEDS))[0].level is Level.MEND
    owner.execute("REVOKE INSERT ON movements FROM usage_feeds_worker")
    [finding] = judge_worker(read_role(worker, WORKER_NEEDS))
    assert finding.what.endswith("may not INSERT ON movements.")

    assert judge_reader(read_role(owner, READER_NEEDS))[0].level is Level.NOTE


def test_a_role_that_may_not_even_ask_is_to_mend(owner, login, environment, monkeypatch):
    owner.execute("CREATE ROLE nothing_doctor")
    stranger = login("nothing_doctor")
    monkeypatch.setenv("DATABASE_URL", make_conninfo(stranger.info.dsn, password="x"))
    clear_settings()
    try:
        document = run_json("doctor", code=1)
    finally:
        owner.execute("DROP ROLE nothing_doctor")

    assert found(document, "mend") == {*UNSAFE, "refused"}


def test_without_a_pooler_none_is_found(database_url):
    with psycopg.connect(database_url, autocommit=True) as one, psycopg.connect(database_url, autocommit=True) as other:
        assert judge_backends(read_backends(one, other)) == []


def test_a_server_that_does_not_answer_is_given_up(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(TimeoutError, match="no answer within"), bounded(connection, 0.2):
            connection.execute("SELECT pg_sleep(30)")
        assert connection.closed


@pytest.fixture
def users(redis_program, tmp_path):
    """Give the function that returns a client of a user of deploy/redis.acl, and one with all rights."""
    with own_server(tmp_path / "redis", redis_program) as server, redis.Redis.from_url(server.url) as admin:
        for line in (CHECKOUT / "deploy/redis.acl").read_text().splitlines()[1:]:
            admin.execute_command("ACL", "SETUSER", *re.findall(r"\([^)]*\)|\S+", line)[1:])
        port = admin.connection_pool.connection_kwargs["port"]

        def client_of(user):
            return redis.Redis(port=port, username=user, password=f"{user.upper()}_PASSWORD")

        yield client_of, admin


def test_the_users_of_the_acl_file_may_run_what_they_need_and_nothing_is_run(users):
    client_of, admin = users
    everything = needs_of([STREAMS, FEEDS, BROKER])

    assert read_refused(client_of("worker"), everything) == []
    assert read_refused(client_of("reader"), needs_of([FEEDS], of_reader=True)) == []
    refused = read_refused(client_of("reader"), everything)
    assert ("XADD", "events:{0}", "*", "event", "{}") in refused
    admin.execute_command("ACL", "SETUSER", "worker", "-xdel")
    assert [command[0] for command in read_refused(client_of("worker"), everything)] == ["XDEL"]
    admin.execute_command("ACL", "SETUSER", "worker", "+xdel", "-multi")
    assert read_refused(client_of("worker"), everything) == [("MULTI",)]
    assert admin.dbsize() == 0


def test_in_the_endpoints_environment_its_own_servers_and_rights_are_looked_at(users, login, environment, monkeypatch):
    _, admin = users
    port = admin.connection_pool.connection_kwargs["port"]
    reader = make_conninfo(login(ROLES[1]).info.dsn, password="x")
    own = {"READER_DATABASE_URL": reader, "FEEDS_REDIS_URL": f"redis://reader:READER_PASSWORD@127.0.0.1:{port}/0"}
    for name, value in ({"DATABASE_URL": "", "REDIS_URL": ""} | own).items():
        monkeypatch.setenv(name, value)
    clear_settings()

    document = run_json("doctor", code=1)

    assert found(document, "mend") == UNSAFE
    assert found(document, "ok") >= {"role", "rights"}
    assert "PASSWORD" not in str(document)


def test_a_user_without_config_gets_a_note_of_what_was_not_looked_at(users, environment, monkeypatch):
    _, admin = users
    port = admin.connection_pool.connection_kwargs["port"]
    monkeypatch.setenv("REDIS_URL", f"redis://worker:WORKER_PASSWORD@127.0.0.1:{port}/0")
    clear_settings()

    document = run_json("doctor", code=1)

    assert found(document, "mend") == UNSAFE
    [unknown] = [each for each in document["findings"] if each["name"] == "append_only"]
    assert (unknown["level"], "CONFIG GET is refused" in unknown["what"]) == ("note", True)
