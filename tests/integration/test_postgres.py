import asyncio
import gc
import socket
import time
from pathlib import Path

import psycopg
import pytest

from feeds.addresses.postgres import parse_postgres
from feeds.postgres import SQL, Postgres, PostgresAway
from tests.acceptance.relay import Relay


def run(address, use, **options):
    """Return what `use` returns, given a `Postgres` at an address."""

    async def call():
        postgres = Postgres(address, **options)
        try:
            return await use(postgres)
        finally:
            await postgres.close()

    return asyncio.run(call())


def test_a_connection_is_reused(database_url):
    async def use(postgres):
        return [await postgres.fetch(b"SELECT pg_backend_pid()", {}) for _ in range(5)]

    assert len({rows[0] for rows in run(database_url, use)}) == 1


def test_no_more_statements_run_at_the_same_time_than_allowed(database_url):
    async def use(postgres):
        return await asyncio.gather(
            *(postgres.fetch(b"SELECT pg_backend_pid(), pg_sleep(0.01)", {}) for _ in range(30))
        )

    assert len({rows[0][0] for rows in run(database_url, use, concurrency=3, deadline_s=10)}) <= 3


def test_a_server_that_refuses_connections_fails_the_call_at_once():
    async def use(postgres):
        started = time.monotonic()
        with pytest.raises(PostgresAway):
            await postgres.fetch(b"SELECT 1", {})
        return time.monotonic() - started

    assert run("postgresql://nobody@127.0.0.1:1/nowhere", use) < 0.5


def test_a_server_that_never_answers_fails_all_calls_at_the_deadline():
    async def use(postgres):
        started = time.monotonic()
        answers = await asyncio.gather(*(postgres.fetch(b"SELECT 1", {}) for _ in range(20)), return_exceptions=True)
        return [type(answer) for answer in answers], time.monotonic() - started

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"postgresql://nobody@127.0.0.1:{mute.getsockname()[1]}/nowhere"
        types, took_s = run(address, use, concurrency=2, deadline_s=0.3)

    assert types == [PostgresAway] * 20
    assert took_s < 1.0


def test_a_first_host_that_never_answers_is_tried_last_from_the_second_call_on(database_url):
    async def use(postgres):
        first = await asyncio.gather(*(postgres.fetch(b"SELECT 1::int4", {}) for _ in range(4)), return_exceptions=True)
        return [type(answer) for answer in first], [await postgres.fetch(b"SELECT 1::int4", {}) for _ in range(3)]

    with socket.create_server(("127.0.0.1", 0)) as mute, Relay(database_url) as real:
        user_and_rest = real.database_url.partition("127.0.0.1:")
        address = f"{user_and_rest[0]}127.0.0.1:{mute.getsockname()[1]},127.0.0.1:{user_and_rest[2]}"
        first, later = run(parse_postgres(address), use, deadline_s=0.5)

    assert first == [PostgresAway] * 4
    assert later == [[(1,)]] * 3


def test_a_slow_statement_fails_at_the_deadline_and_is_ended_on_the_server(database_url, wait_until):
    async def use(postgres):
        with pytest.raises(PostgresAway):
            await postgres.fetch(b"SELECT pg_sleep(60)", {})
        await asyncio.to_thread(wait_until, lambda: not sleeping(database_url))
        return await postgres.fetch(b"SELECT 'again'", {})

    assert run(database_url, use, concurrency=1, deadline_s=0.3) == [("again",)]


def sleeping(database_url):
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        ).fetchall()


def test_connections_that_the_server_closed_are_replaced_without_an_error(database_url):
    async def use(postgres):
        before = await asyncio.gather(
            *(postgres.fetch(b"SELECT pg_backend_pid(), pg_sleep(0.05)", {}) for _ in range(4))
        )
        terminate_all_others(database_url)
        after = await asyncio.gather(*(postgres.fetch(b"SELECT pg_backend_pid()", {}) for _ in range(4)))
        return {rows[0][0] for rows in before}, {rows[0][0] for rows in after}

    before, after = run(database_url, use, deadline_s=5)
    assert len(before) == 4
    assert not before & after


def terminate_all_others(database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_refused_statement_does_not_affect_the_next_one(database_url):
    async def use(postgres):
        with pytest.raises(PostgresAway, match="DivisionByZero"):
            await postgres.fetch(b"SELECT 1 / 0", {})
        return await postgres.fetch(b"SELECT 1::int4", {})

    assert run(database_url, use) == [(1,)]


def test_a_cancelled_call_frees_its_slot(database_url):
    async def use(postgres):
        call = asyncio.create_task(postgres.fetch(b"SELECT pg_sleep(60)", {}))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await postgres.fetch(b"SELECT 1::int4", {})

    assert run(database_url, use, concurrency=1, deadline_s=8) == [(1,)]


def test_an_error_of_the_statement_that_sets_the_bounds_is_raised(database_url, monkeypatch):
    monkeypatch.setitem(SQL, "bound_statement", b"SELECT 1 / 0, %(org_id)s::text")

    async def use(postgres):
        with pytest.raises(PostgresAway, match="DivisionByZero"):
            await postgres.fetch(b"SELECT 1", {})

    run(database_url, use)


def test_a_refused_commit_raises_and_does_not_affect_the_next_statement(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE ones (one integer PRIMARY KEY)")
        connection.execute("CREATE TABLE twos (one integer REFERENCES ones DEFERRABLE INITIALLY DEFERRED)")

    async def use(postgres):
        with pytest.raises(PostgresAway, match="ForeignKeyViolation"):
            await postgres.fetch(b"INSERT INTO twos VALUES (1)", {})
        return await postgres.fetch(b"SELECT 1::int4", {})

    assert run(database_url, use) == [(1,)]


def test_half_open_connections_of_failed_calls_are_closed_at_once():
    def count_open_files():
        return len(list(Path("/proc/self/fd").iterdir()))

    async def use(postgres):
        counts = []
        for _ in range(5):
            calls = (postgres.fetch(b"SELECT 1", {}) for _ in range(8))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(answer) for answer in answers} == {PostgresAway}
            del answers
            counts.append(count_open_files())
        return counts

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"postgresql://nobody@127.0.0.1:{mute.getsockname()[1]}/nowhere"
        gc.disable()
        try:
            counts = run(address, use, deadline_s=0.05)
        finally:
            gc.enable()

    assert counts[-1] <= counts[0]


def test_a_call_under_way_at_close_leaves_no_connection(database_url, wait_until):
    def is_open(pid):
        with psycopg.connect(database_url) as connection:
            return connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchall()

    async def use(postgres):
        call = asyncio.create_task(postgres.fetch(b"SELECT pg_backend_pid(), pg_sleep(0.2)", {}))
        await asyncio.sleep(0.1)
        await postgres.close()
        [(pid, _)] = await call
        await asyncio.to_thread(wait_until, lambda: not is_open(pid))

    run(database_url, use, deadline_s=8)
