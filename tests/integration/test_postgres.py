import asyncio
import socket
import time

import psycopg
import pytest

from feeds.postgres import Postgres, PostgresAway


def run(address, use, **options):
    """Return what `use` makes of connections to an address."""

    async def ask():
        postgres = Postgres(address, **options)
        try:
            return await use(postgres)
        finally:
            await postgres.close()

    return asyncio.run(ask())


def test_answers_come_from_connections_that_are_kept(database_url):
    async def use(postgres):
        return [await postgres.fetch(b"SELECT pg_backend_pid()", {}) for _ in range(5)]

    assert len({rows[0] for rows in run(database_url, use)}) == 1


def test_no_more_connections_are_open_than_may_ask_at_once(database_url):
    async def use(postgres):
        return await asyncio.gather(
            *(postgres.fetch(b"SELECT pg_backend_pid(), pg_sleep(0.01)", {}) for _ in range(30))
        )

    assert len({rows[0][0] for rows in run(database_url, use, at_once=3, deadline_s=10)}) <= 3


def test_a_server_that_refuses_connections_is_noticed_at_once():
    async def use(postgres):
        started = time.monotonic()
        with pytest.raises(PostgresAway):
            await postgres.fetch(b"SELECT 1", {})
        return time.monotonic() - started

    assert run("postgresql://nobody@127.0.0.1:1/nowhere", use) < 0.5


def test_a_server_that_never_answers_is_given_up_by_the_deadline():
    async def use(postgres):
        started = time.monotonic()
        answers = await asyncio.gather(*(postgres.fetch(b"SELECT 1", {}) for _ in range(20)), return_exceptions=True)
        return [type(answer) for answer in answers], time.monotonic() - started

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"postgresql://nobody@127.0.0.1:{mute.getsockname()[1]}/nowhere"
        types, took_s = run(address, use, at_once=2, deadline_s=0.3)

    assert types == [PostgresAway] * 20
    assert took_s < 1.0


def test_a_slow_statement_is_given_up_by_the_deadline_and_ended_at_the_server(database_url, wait_until):
    async def use(postgres):
        with pytest.raises(PostgresAway):
            await postgres.fetch(b"SELECT pg_sleep(60)", {})
        await asyncio.to_thread(wait_until, lambda: not sleeping(database_url))
        return await postgres.fetch(b"SELECT 'again'", {})

    assert run(database_url, use, at_once=1, deadline_s=0.3) == [("again",)]


def sleeping(database_url):
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        ).fetchall()


def test_connections_that_the_server_ended_are_replaced_without_an_error(database_url):
    async def use(postgres):
        before = await asyncio.gather(
            *(postgres.fetch(b"SELECT pg_backend_pid(), pg_sleep(0.05)", {}) for _ in range(4))
        )
        end_all_others(database_url)
        after = await asyncio.gather(*(postgres.fetch(b"SELECT pg_backend_pid()", {}) for _ in range(4)))
        return {rows[0][0] for rows in before}, {rows[0][0] for rows in after}

    before, after = run(database_url, use, deadline_s=5)
    assert len(before) == 4
    assert not before & after


def end_all_others(database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_statement_that_is_refused_costs_no_later_one(database_url):
    async def use(postgres):
        with pytest.raises(PostgresAway, match="DivisionByZero"):
            await postgres.fetch(b"SELECT 1 / 0", {})
        return await postgres.fetch(b"SELECT 1::int4", {})

    assert run(database_url, use) == [(1,)]


def test_one_who_gives_up_waiting_gives_back_the_turn(database_url):
    async def use(postgres):
        asking = asyncio.create_task(postgres.fetch(b"SELECT pg_sleep(60)", {}))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return await postgres.fetch(b"SELECT 1::int4", {})

    assert run(database_url, use, at_once=1, deadline_s=8) == [(1,)]
