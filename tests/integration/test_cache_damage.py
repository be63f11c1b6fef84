"""Whatever is lost or damaged in the feeds' Redis costs time, never a wrong page."""

import pytest
import redis

from feeds.cached import format as proof
from feeds.cached import writer
from feeds.cached.format import Hit, Miss, MissReason
from feeds.page import place_page
from tests.integration.feed_ledger import (
    COUNT,
    FEED,
    ORG,
    FeedLedger,
    cached_feeds,
    expected,
    hash_of,
    link_to,
    own_server,
    read,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("count", [b"5", b"4 00000000", b"6 ", b"", b"99999999999999999999 12345678", b"x"])
async def test_a_damaged_count_is_a_miss_and_is_repaired(redis_url, count):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            client.hset(hash_of(link, ledger), str(FEED), count)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.CORRUPT)
            assert await feeds.page(ORG, FEED, COUNT) == Miss(MissReason.CORRUPT)
            assert await read(feeds, ledger) == expected(ledger)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)

            client.hset(hash_of(link, ledger), str(FEED), count)
            writer.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.COLD)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda entry: entry.replace(b'"credits":', b'"credits":1'), MissReason.CORRUPT),
        (lambda entry: entry[:-1], MissReason.CORRUPT),
        (lambda entry: b"", MissReason.CORRUPT),
        (lambda entry: b"{}", MissReason.CORRUPT),
        (lambda entry: b"\xff" * 300, MissReason.CORRUPT),
        (lambda entry: entry.replace(b"3 ", b"2 ", 1), MissReason.TORN),
    ],
)
async def test_a_damaged_entry_is_a_miss_and_is_repaired(redis_url, damage, reason):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            key = proof.list_key(hash_of(link, ledger), FEED)
            client.lset(key, 2, damage(client.lindex(key, 2)))
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(reason)
            assert await read(feeds, ledger) == expected(ledger)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_an_entry_of_another_rendering_is_a_miss(redis_url, monkeypatch):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        with monkeypatch.context() as older:
            older.setattr(proof, "RENDERING", proof.RENDERING + 1)
            await read(feeds, ledger)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.CORRUPT)
        assert await read(feeds, ledger) == await read(feeds, ledger) == expected(ledger)
        assert ledger.reads == 2


async def test_what_belongs_to_another_organisation_proves_nothing(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    ledger.post("org_b", 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        await feeds.refill("org_b", FEED, ledger.reader("org_b", FEED))
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            ours, theirs = hash_of(link, ledger), hash_of(link, ledger, "org_b")
            client.copy(proof.list_key(theirs, FEED), proof.list_key(ours, FEED), replace=True)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.CORRUPT)
            client.copy(theirs, ours, replace=True)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.CORRUPT)


async def test_keys_of_another_type_are_a_miss_and_are_repaired(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            for key in (hash_of(link, ledger), proof.list_key(hash_of(link, ledger), FEED)):
                client.set(key, "nonsense")
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.CORRUPT)
                assert await read(feeds, ledger) == await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
                client.set(key, "nonsense")
                assert writer.append(link, ledger.epoch, {ORG: ledger.post(ORG)}).refused == 1
                assert await read(feeds, ledger) == await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_flush_in_the_middle_of_load_serves_right_pages_with_few_reads(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 50)
    async with cached_feeds(redis_url, ledger) as feeds:
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            for turn in range(200):
                if turn % 20 == 10:
                    client.flushall()
                    client.script_flush()
                if turn % 2:
                    writer.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
                assert await read(feeds, ledger) == expected(ledger)
    assert ledger.reads <= 12


async def test_a_full_redis_refuses_appends_and_still_serves_what_is_true(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    ledger.post("org_b", 5)
    with own_server(program=redis_program) as server, link_to(server.url) as link:
        async with cached_feeds(server.url, ledger) as feeds:
            await read(feeds, ledger)
            await feeds.refill("org_b", FEED, ledger.reader("org_b", FEED))
            with redis.Redis.from_url(server.url) as client:
                client.config_set("maxmemory", 1)
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)

                shown = writer.append(link, ledger.epoch, {ORG: ledger.post(ORG, 2)})
                assert (shown.appended, shown.refused) == (0, 1)
                assert await read(feeds, ledger) == expected(ledger)
                assert await feeds.page("org_b", FEED, place_page(1, 5)) == Hit(5, ledger.newest_first("org_b", FEED))

                client.config_set("maxmemory", 0)
                assert await read(feeds, ledger) == await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
