"""Servers that go away, come back or change, and what the worker does then."""

import asyncio
import os
import signal
import time

import psycopg
import pytest
import redis

from feeds.cached import writer
from feeds.cached.format import FeedsAway, Miss, MissReason
from feeds.page import place_page
from tests.integration.feed_ledger import (
    FEED,
    ORG,
    FeedLedger,
    cached_feeds,
    expected,
    link_to,
    own_server,
    read,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger_row(database_url):
    """A connection to a migrated database, whose `ledger` row has an epoch."""
    with psycopg.connect(database_url) as connection:
        yield connection


async def test_a_failover_there_and_back_brings_no_page_from_before(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    with own_server(program=redis_program) as server, own_server(program=redis_program) as other:
        async with cached_feeds(server.url, ledger) as feeds:
            await read(feeds, ledger)
            with link_to(server.url) as link, redis.Redis.from_url(server.url) as client:
                link.server()
                old = feeds.multiplexer.server
                port = redis.Redis.from_url(other.url).connection_pool.connection_kwargs["port"]
                client.config_set("repl-timeout", 1)
                client.replicaof("127.0.0.1", port)
                posted = ledger.post(ORG)
                with pytest.raises(FeedsAway):
                    writer.append(link, ledger.epoch, {ORG: posted})
                await until(lambda: feeds.multiplexer.server is None)
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.AWAY)

                client.replicaof("NO", "ONE")
                await until(lambda: feeds.multiplexer.server is not None)
                assert feeds.multiplexer.server != old
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.COLD)
                writer.append(link, ledger.epoch, {ORG: posted})
                assert await read(feeds, ledger) == expected(ledger)


async def test_the_worker_notices_a_failover_there_and_back_on_a_connection_that_survived(redis_program):
    ledger = FeedLedger()
    with own_server(program=redis_program) as server, link_to(server.url) as link:
        old = link.server()
        with redis.Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", 1)
            client.replicaof("NO", "ONE")
        with pytest.raises(FeedsAway, match="failover"):
            writer.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
        assert link.server() != old


def test_showing_a_batch_reads_the_epoch_after_the_commit_and_drops_what_is_repeated(redis_url, ledger_row):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    ledger.post("org_b", 5)
    ledger.epoch = writer.read_epoch(ledger_row)

    async def refilled():
        async with cached_feeds(redis_url, ledger) as feeds:
            for org_id in (ORG, "org_b"):
                await feeds.refill(org_id, FEED, ledger.reader(org_id, FEED))

    asyncio.run(refilled())
    with link_to(redis_url) as link:
        posted = {org_id: ledger.post(org_id) for org_id in (ORG, "org_b")}
        shown = writer.show(link, ledger_row, posted, repeated=["org_b"])
        assert shown == writer.Published(appended=1, dropped=1)
    assert writer.read_epoch(ledger_row) == ledger.epoch


def test_feeds_away_for_over_a_second_are_given_up_by_a_new_epoch(ledger_row):
    ledger = FeedLedger()
    before = writer.read_epoch(ledger_row)
    with own_server() as server, link_to(server.url) as link:
        assert not writer.show(link, ledger_row, {ORG: ledger.post(ORG)}).epoch_renewed
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            assert writer.show(link, ledger_row, {ORG: ledger.post(ORG)}).epoch_renewed
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        after = writer.read_epoch(ledger_row)
        assert after != before
        assert not writer.show(link, ledger_row, {ORG: ledger.post(ORG)}).epoch_renewed
        assert link.away_since is None
    assert writer.read_epoch(ledger_row) == after


def test_an_epoch_that_another_process_ended_is_not_renewed_again(ledger_row):
    before = writer.read_epoch(ledger_row)
    writer.renew_epoch(ledger_row, before)
    after = writer.read_epoch(ledger_row)
    writer.renew_epoch(ledger_row, before)
    assert writer.read_epoch(ledger_row) == after != before


def test_a_batch_waits_for_readers_only_where_its_epoch_may_be_new(redis_url, ledger_row, monkeypatch):
    ledger, waits = FeedLedger(), []
    monkeypatch.setattr(time, "sleep", waits.append)
    with link_to(redis_url) as link:
        link.know(writer.read_epoch(ledger_row), since=time.monotonic() - writer.EPOCH_KNOWN_S)
        writer.show(link, ledger_row, {ORG: ledger.post(ORG)})
        writer.renew_epoch(ledger_row, writer.read_epoch(ledger_row))
        writer.show(link, ledger_row, {ORG: ledger.post(ORG)})
    assert waits == [0, pytest.approx(writer.EPOCH_KNOWN_S, abs=0.5)]
