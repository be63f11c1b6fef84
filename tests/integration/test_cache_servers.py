"""Redis servers that go away, come back or fail over, and what the worker does then."""

import asyncio
import os
import signal
import time

import psycopg
import pytest
import redis

from feeds.cached import writer
from feeds.cached.epoch import KNOWN_WITHIN_S, read_epoch, renew_epoch
from feeds.cached.format import FeedsAway, Miss, MissReason
from feeds.page import place_page
from tests.integration.feed_ledger import (
    FEED,
    ORG,
    FeedLedger,
    cached_feeds,
    expected,
    own_server,
    read,
    refill,
    until,
    worker_connection,
)

pytestmark = pytest.mark.anyio

FIRST_PAGE = place_page(1, 20)


@pytest.fixture
def database(database_url):
    """A connection to a migrated database, whose `ledger` row has an epoch."""
    with psycopg.connect(database_url) as connection:
        yield connection


async def test_a_failover_and_failback_bring_no_page_from_before(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    with own_server(program=redis_program) as server, own_server(program=redis_program) as other:
        async with cached_feeds(server.url, ledger) as cache:
            await read(cache, ledger)
            with worker_connection(server.url) as feeds_redis, redis.Redis.from_url(server.url) as client:
                feeds_redis.server()
                before = cache.multiplexer.server
                port = redis.Redis.from_url(other.url).connection_pool.connection_kwargs["port"]
                client.config_set("repl-timeout", 1)
                client.replicaof("127.0.0.1", port)
                posted = ledger.post(ORG)
                with pytest.raises(FeedsAway):
                    writer.append(feeds_redis, ledger.epoch, {ORG: posted})
                await until(lambda: cache.multiplexer.server is None)
                assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.AWAY)

                client.replicaof("NO", "ONE")
                await until(lambda: cache.multiplexer.server is not None)
                assert cache.multiplexer.server != before
                assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.COLD)
                writer.append(feeds_redis, ledger.epoch, {ORG: posted})
                assert await read(cache, ledger) == expected(ledger)


async def test_the_worker_notices_a_failover_and_failback_on_a_connection_that_survived(redis_program):
    ledger = FeedLedger()
    with own_server(program=redis_program) as server, worker_connection(server.url) as feeds_redis:
        before = feeds_redis.server()
        with redis.Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", 1)
            client.replicaof("NO", "ONE")
        with pytest.raises(FeedsAway, match="failover"):
            writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG)})
        assert feeds_redis.server() != before


def test_publish_reads_the_epoch_after_the_commit_and_drops_repeated_organisations(redis_url, database):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    ledger.post("org_b", 5)
    ledger.epoch = read_epoch(database)

    async def refill_both():
        async with cached_feeds(redis_url, ledger) as cache:
            for org_id in (ORG, "org_b"):
                await refill(cache, ledger, org_id=org_id)

    asyncio.run(refill_both())
    with worker_connection(redis_url) as feeds_redis:
        posted = {org_id: ledger.post(org_id) for org_id in (ORG, "org_b")}
        published = writer.publish(feeds_redis, database, posted, repeated=["org_b"])
        assert published == writer.Published(appended=1, dropped=1)
    assert read_epoch(database) == ledger.epoch


def test_a_new_epoch_starts_if_redis_is_away_for_over_a_second(database):
    ledger = FeedLedger()
    before = read_epoch(database)
    with own_server() as server, worker_connection(server.url) as feeds_redis:

        def publish():
            return writer.publish(feeds_redis, database, {ORG: ledger.post(ORG)})

        assert not publish().epoch_renewed
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            assert publish().epoch_renewed
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        after = read_epoch(database)
        assert after != before
        assert not publish().epoch_renewed
        assert feeds_redis.away_since is None
    assert read_epoch(database) == after


def test_an_epoch_that_another_process_has_ended_is_not_renewed_again(database):
    before = read_epoch(database)
    renew_epoch(database, before)
    after = read_epoch(database)
    renew_epoch(database, before)
    assert read_epoch(database) == after != before


def test_publish_waits_for_readers_only_if_its_epoch_may_be_new(redis_url, database, monkeypatch):
    ledger, waits = FeedLedger(), []
    monkeypatch.setattr(time, "sleep", waits.append)
    with worker_connection(redis_url) as feeds_redis:
        feeds_redis.note_epoch(read_epoch(database), since=time.monotonic() - KNOWN_WITHIN_S)
        writer.publish(feeds_redis, database, {ORG: ledger.post(ORG)})
        renew_epoch(database, read_epoch(database))
        writer.publish(feeds_redis, database, {ORG: ledger.post(ORG)})
    assert waits == [0, pytest.approx(KNOWN_WITHIN_S, abs=0.5)]
