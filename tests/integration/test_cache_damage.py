"""Loss and damage in the feeds' Redis cost time, never a wrong page."""

import pytest
import redis

from feeds.cached import format as cache_format
from feeds.cached import writer
from feeds.cached.format import Hit, Miss, MissReason, list_key
from feeds.page import place_page
from tests.integration.feed_ledger import (
    COUNT,
    FEED,
    ORG,
    FeedLedger,
    cached_feeds,
    expected,
    hash_of,
    own_server,
    read,
    refill,
    worker_connection,
)

pytestmark = pytest.mark.anyio

FIRST_PAGE = place_page(1, 20)


@pytest.mark.parametrize("count", [b"5", b"4 00000000", b"6 ", b"", b"99999999999999999999 12345678", b"x"])
async def test_a_damaged_count_is_a_miss_and_is_repaired(redis_url, count):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            client.hset(hash_of(feeds_redis, ledger), str(FEED), count)
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.CORRUPT)
            assert await cache.read(ORG, FEED, COUNT) == Miss(MissReason.CORRUPT)
            assert await read(cache, ledger) == expected(ledger)
            assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)

            client.hset(hash_of(feeds_redis, ledger), str(FEED), count)
            writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG)})
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.COLD)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda element: element.replace(b'"credits":', b'"credits":1'), MissReason.CORRUPT),
        (lambda element: element[:-1], MissReason.CORRUPT),
        (lambda element: b"", MissReason.CORRUPT),
        (lambda element: b"{}", MissReason.CORRUPT),
        (lambda element: b"\xff" * 300, MissReason.CORRUPT),
        (lambda element: element.replace(b"3 ", b"2 ", 1), MissReason.TORN),
    ],
)
async def test_a_damaged_item_is_a_miss_and_is_repaired(redis_url, damage, reason):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            key = list_key(hash_of(feeds_redis, ledger), FEED)
            client.lset(key, 2, damage(client.lindex(key, 2)))
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(reason)
            assert await read(cache, ledger) == expected(ledger)
            assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)


async def test_an_item_of_another_format_version_is_a_miss(redis_url, monkeypatch):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        with monkeypatch.context() as other:
            other.setattr(cache_format, "FORMAT_VERSION", cache_format.FORMAT_VERSION + 1)
            await read(cache, ledger)
        assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.CORRUPT)
        assert await read(cache, ledger) == await read(cache, ledger) == expected(ledger)
        assert ledger.reads == 2


async def test_the_keys_of_another_organisation_are_not_valid(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    ledger.post("org_b", 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        await refill(cache, ledger, org_id="org_b")
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            ours, theirs = hash_of(feeds_redis, ledger), hash_of(feeds_redis, ledger, "org_b")
            client.copy(list_key(theirs, FEED), list_key(ours, FEED), replace=True)
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.CORRUPT)
            client.copy(theirs, ours, replace=True)
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.CORRUPT)


async def test_keys_of_another_type_are_a_miss_and_are_repaired(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            for key in (hash_of(feeds_redis, ledger), list_key(hash_of(feeds_redis, ledger), FEED)):
                client.set(key, "nonsense")
                assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.CORRUPT)
                assert await read(cache, ledger) == await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)
                client.set(key, "nonsense")
                assert writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG)}).refused == 1
                assert await read(cache, ledger) == await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)


async def test_flushes_under_load_give_right_pages_and_cost_few_reads(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 50)
    async with cached_feeds(redis_url, ledger) as cache:
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            for turn in range(200):
                if turn % 20 == 10:
                    client.flushall()
                    client.script_flush()
                if turn % 2:
                    writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG)})
                assert await read(cache, ledger) == expected(ledger)
    assert ledger.reads <= 12


async def test_a_full_redis_refuses_appends_and_still_serves_current_feeds(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    ledger.post("org_b", 5)
    with own_server(program=redis_program) as server, worker_connection(server.url) as feeds_redis:
        async with cached_feeds(server.url, ledger) as cache:
            await read(cache, ledger)
            await refill(cache, ledger, org_id="org_b")
            with redis.Redis.from_url(server.url) as client:
                client.config_set("maxmemory", 1)
                assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)

                published = writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG, 2)})
                assert (published.appended, published.refused) == (0, 1)
                assert await read(cache, ledger) == expected(ledger)
                assert await cache.read("org_b", FEED, place_page(1, 5)) == Hit(5, ledger.newest_first("org_b", FEED))

                client.config_set("maxmemory", 0)
                assert await read(cache, ledger) == await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)
