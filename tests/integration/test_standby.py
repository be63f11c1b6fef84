"""A standby, whose rows may be old, is neither read nor written, and left as soon as the address leads elsewhere."""

import asyncio
import os
from urllib.parse import urlsplit

import psycopg
import pytest

from feeds.cached.epoch import fetch_epoch, read_epoch
from feeds.database import READING, WRITING, begin, connect
from feeds.postgres import Postgres, PostgresAway
from feeds.schema import Ledger
from tests.acceptance.relay import Relay
from tests.servers import server_folder
from worker.intake.sweep import find_due
from worker.local import children, postgres

LEDGER = Ledger(None, b"", 8, 0, {}, 0.0, "public", "read committed")


@pytest.fixture(scope="module")
def standby_url(no_settings):
    """Give the address of a standby without a primary: it only reads."""
    with server_folder() as folder, (folder / "log").open("wb") as log:
        server = postgres.start_postgres(folder / "postgres", log, settings=postgres.UNSAFE_BUT_FAST)
        children.stop(server.process, postgres.SIGNALS, within_s=10)
        mark = server.home / "data" / "standby.signal"
        mark.touch()
        if account := postgres.server_account():
            os.chown(mark, account.uid, account.gid)
        server = postgres.start_postgres(folder / "postgres", log, settings=postgres.UNSAFE_BUT_FAST)
        yield server.url
        children.stop(server.process, postgres.SIGNALS, within_s=10)
        postgres.remove_socket_folder(server.home)


@pytest.fixture(scope="module")
def primary_url(no_settings):
    """Give the address of a primary with the same user and database as the standby."""
    with server_folder() as folder, (folder / "log").open("wb") as log:
        server = postgres.start_postgres(folder / "postgres", log, settings=postgres.UNSAFE_BUT_FAST)
        yield server.url
        children.stop(server.process, postgres.SIGNALS, within_s=10)
        postgres.remove_socket_folder(server.home)


@pytest.fixture
def address(standby_url):
    """Give a relay that leads to the standby."""
    with Relay(standby_url) as relay:
        yield relay


def lead(relay, url):
    """Let new connections lead to another server; the open ones stay where they are."""
    relay.url = urlsplit(url)


def count_clients(standby_url):
    with psycopg.connect(standby_url, autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        return connection.execute(query).fetchone()[0] - 1


def test_the_endpoint_refuses_a_standby_and_keeps_no_connection_to_it(standby_url, wait_until):
    async def use():
        server = Postgres(standby_url)
        for options in ({}, {"writes": True}):
            with pytest.raises(PostgresAway, match=r"ServerIsStandby|FeatureNotSupported"):
                await server.fetch(b"SELECT 1", {}, **options)
        with pytest.raises(PostgresAway, match="ServerIsStandby"):
            await fetch_epoch(server)
        await asyncio.to_thread(wait_until, lambda: count_clients(standby_url) == 0)
        await server.close()

    asyncio.run(use())


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_a_demoted_server_is_left_by_the_same_call_that_finds_it_out(primary_url, address, monkeypatch, isolation):
    """The connections to the old server stay open, as a relay or PgBouncer may keep them."""

    async def use():
        server = Postgres(address.database_url, isolation=isolation)
        with monkeypatch.context() as patch:
            patch.setattr("feeds.postgres.TRUE", b"never")  # so that the idle connections lead to a standby
            await asyncio.gather(*(server.fetch(b"SELECT pg_sleep(0.1)", {}) for _ in range(3)))
        lead(address, primary_url)
        rows = [await server.fetch(b"SELECT pg_is_in_recovery()", {}) for _ in range(4)]
        await server.close()
        return rows

    assert asyncio.run(use()) == [[(False,)]] * 4


def test_a_transaction_that_may_write_closes_its_connection_to_a_standby(standby_url):
    connection = connect(standby_url, 5)
    with pytest.raises(psycopg.errors.FeatureNotSupported), begin(connection):
        pass
    assert connection.closed


@pytest.mark.parametrize("work", [lambda one: find_due(one, LEDGER), lambda one: read_epoch(one, WRITING)])
def test_neither_a_sweep_nor_the_publishing_of_a_batch_reads_a_standby(standby_url, work):
    connection = connect(standby_url, 5)
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        work(connection)
    assert connection.closed


def test_a_command_that_only_reads_may_read_a_standby(standby_url):
    with connect(standby_url, 5) as connection, begin(connection, READING):
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
