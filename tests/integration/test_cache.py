"""The cached feeds on a real server: the worker appends to them, the endpoint reads and refills them."""

import asyncio
from uuid import uuid4

import pytest
import redis

from feeds.cached import writer
from feeds.cached.format import WINDOW, Hit, Miss, MissReason, list_key
from feeds.movement import Kind
from feeds.page import Place, place_page
from tests.integration.feed_ledger import (
    COUNT,
    FEED,
    ORG,
    FeedLedger,
    cached_feeds,
    expected,
    hash_of,
    read,
    read_from,
    refill,
    until,
    worker_connection,
)

pytestmark = pytest.mark.anyio

FIRST_PAGE = place_page(1, 20)


async def test_a_feed_that_was_read_has_every_later_append_without_a_read_of_postgres(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis:
            for kind in (Kind.CONSUME, Kind.ALLOT, Kind.CONSUME):
                assert writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG, 3, kind)}).appended == 1
                for number in (1, 2):
                    place = place_page(number, 20)
                    assert await cache.read(ORG, FEED, place) == expected(ledger, place=place)
    assert ledger.reads == 1


async def test_an_append_creates_nothing_for_an_organisation_that_is_not_read(redis_url):
    ledger = FeedLedger()
    with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
        assert writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG, 3)}).appended == 0
        assert client.dbsize() == 0


async def test_an_empty_feed_is_a_hit_and_gets_its_first_movement_by_append(redis_url):
    ledger = FeedLedger()
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        assert await cache.read(ORG, FEED, FIRST_PAGE) == Hit(0, [])
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG)})
            assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)
            assert all(0 < client.pttl(key) <= 600_000 for key in client.scan_iter())


async def test_beyond_the_window_only_the_count_is_cached(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger, window=25) as cache:
        await read(cache, ledger)
        assert await cache.read(ORG, FEED, place_page(2, 20)) == Miss(MissReason.BEYOND, 30)
        assert await cache.read(ORG, FEED, place_page(3, 10)) == Miss(MissReason.BEYOND, 30)
        assert await cache.read(ORG, FEED, place_page(4, 10)) == Hit(30, [])
        assert await cache.read(ORG, FEED, place_page(5, 5)) == expected(ledger, place=place_page(5, 5))
        assert await cache.read(ORG, FEED, COUNT) == Hit(30, [])


async def test_a_cursor_keeps_its_place_while_movements_are_appended(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)

    async def items_at(place):
        return (await cache.read(ORG, FEED, place)).items

    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        below = ledger.newest_first(ORG, FEED)[10:15]
        with worker_connection(redis_url) as feeds_redis:
            for _ in range(3):
                assert await items_at(Place(5, ceiling=20)) == below
                writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG, 2)})
        assert await items_at(Place(5, ceiling=40, floor=35)) == ledger.newest_first(ORG, FEED)[:1]
        assert await items_at(Place(5, ceiling=45, floor=40)) == []
        assert await items_at(Place(5, ceiling=3)) == ledger.newest_first(ORG, FEED)[-3:]


async def test_an_append_of_more_than_the_window_replaces_the_list(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG, 450)})
            key = list_key(hash_of(feeds_redis, ledger), FEED)
            assert client.llen(key) == WINDOW
            assert client.pttl(key) > 0
        assert await cache.read(ORG, FEED, place_page(10, 20)) == expected(ledger, place=place_page(10, 20))


async def test_appends_in_the_wrong_order_give_no_page_with_a_gap(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        older, newer = ledger.post(ORG, 3), ledger.post(ORG, 2)
        with worker_connection(redis_url) as feeds_redis:
            writer.append(feeds_redis, ledger.epoch, {ORG: newer})
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.SHORT, 10)
            assert await read(cache, ledger) == expected(ledger)
            writer.append(feeds_redis, ledger.epoch, {ORG: older})
        assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)


async def test_an_append_adds_only_what_a_refill_has_not_read_yet(redis_url):
    ledger = FeedLedger()
    already_read = ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis:
            writer.append(feeds_redis, ledger.epoch, {ORG: already_read + ledger.post(ORG, 3)})
        assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)
    assert ledger.reads == 1


async def test_movements_with_those_of_another_process_between_them_are_not_cached_as_neighbours(redis_url):
    ledger = FeedLedger()
    before = ledger.post(ORG, 7)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        between, after = ledger.post(ORG, 2), ledger.post(ORG, 2)
        with worker_connection(redis_url) as feeds_redis:
            writer.append(feeds_redis, ledger.epoch, {ORG: before[-2:] + after})
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.SHORT, 11)
            assert await read(cache, ledger) == expected(ledger)
            writer.append(feeds_redis, ledger.epoch, {ORG: between})
        assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)


async def test_a_put_of_what_was_read_before_a_newer_append_is_refused(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        with worker_connection(redis_url) as feeds_redis:
            fence = await cache.fence(ORG, FEED)
            old = await read_from(ledger)
            writer.append(feeds_redis, ledger.epoch, {ORG: ledger.post(ORG, 2)})

            assert not await cache.put(fence, FEED, old)
            assert await cache.read(ORG, FEED, COUNT) == Miss(MissReason.COLD)
            assert await read(cache, ledger) == expected(ledger)
            assert not await cache.put(fence, FEED, old)
        assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)


async def test_a_refill_reads_three_times_if_appends_come_meanwhile_and_returns_what_it_read_last(redis_url):
    class BusyLedger(FeedLedger):
        async def fetch(self, *arguments, **options):
            rows = await super().fetch(*arguments, **options)
            writer.append(feeds_redis, self.epoch, {ORG: self.post(ORG)})
            return rows

    ledger = BusyLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        with worker_connection(redis_url) as feeds_redis:
            newest = await refill(cache, ledger)
        assert ledger.reads == 3
        assert newest.total == 7


async def test_a_later_append_that_found_a_cold_feed_is_not_hidden_by_an_earlier_one(redis_url):
    ledger = FeedLedger()
    first, _second = ledger.post(ORG), ledger.post(ORG)
    async with cached_feeds(redis_url, ledger) as cache:
        assert await cache.fence(ORG, FEED)
        with worker_connection(redis_url) as feeds_redis:
            writer.append(feeds_redis, ledger.epoch, {ORG: first})
        assert await cache.read(ORG, FEED, COUNT) == Miss(MissReason.COLD)
        assert await read(cache, ledger) == expected(ledger)


async def test_a_refill_does_not_extend_the_time_to_live_of_what_was_cached_before(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            client.pexpire(hash_of(feeds_redis, ledger), 5_000)
            await refill(cache, ledger, feed=1)
            assert 0 < client.pttl(hash_of(feeds_redis, ledger)) <= 5_000
            assert 0 < client.pttl(list_key(hash_of(feeds_redis, ledger), 1)) <= 5_000


async def test_a_cached_page_older_than_one_already_served_is_a_miss(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        cache.highest_served.note_read(ORG, FEED, 6, ledger.epoch)
        assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.OLDER)
        assert await cache.read(ORG, FEED, COUNT) == Miss(MissReason.OLDER)


async def test_a_restored_ledger_is_served_under_its_new_epoch(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 8)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        ledger.feeds.clear()
        ledger.post(ORG, 5)
        ledger.epoch = uuid4()
        await until(lambda: cache.epochs.current == ledger.epoch)

        assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.COLD)
        assert await read(cache, ledger) == expected(ledger)
        assert await cache.read(ORG, FEED, FIRST_PAGE) == expected(ledger)


async def test_the_worker_reads_all_that_is_cached_of_an_organisation_in_one_call(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger, window=3) as cache:
        for feed in (0, 1, 2):
            await refill(cache, ledger, feed)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            client.lpush(list_key(hash_of(feeds_redis, ledger), 1), "nonsense")
            newest = Hit(5, ledger.newest_first(ORG, 0)[:3])
            cached = writer.read_cached(feeds_redis, ledger.epoch, ORG, range(12))
            assert cached == {0: newest, 1: Miss(MissReason.CORRUPT), 2: Hit(0, [])}
            client.lpush(list_key(hash_of(feeds_redis, ledger), 2), "nonsense")
            assert writer.read_cached(feeds_redis, ledger.epoch, ORG, [2]) == {2: Miss(MissReason.TORN)}


async def test_a_drop_leaves_nothing_of_an_organisation(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        with worker_connection(redis_url) as feeds_redis, redis.Redis.from_url(redis_url) as client:
            assert writer.drop(feeds_redis, ledger.epoch, [ORG, "org_b"]) == 1
            assert client.dbsize() == 0


async def test_a_count_whose_epoch_ended_before_the_reply_came_is_not_noted_for_the_next_epoch(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        await read(cache, ledger)
        served = cache.highest_served._served
        served.clear()
        revalidation = cache.make_revalidation(ORG, FEED, FIRST_PAGE, ledger.total(ORG, FEED))
        requests = [
            asyncio.create_task(cache.read(ORG, FEED, FIRST_PAGE)),
            asyncio.create_task(cache.revalidate(ORG, revalidation)),
        ]
        await asyncio.sleep(0)  # the requests are sent
        cache.epochs.ended, cache.epochs.current = cache.epochs.current, uuid4()
        assert await asyncio.gather(*requests) == [Miss(MissReason.AWAY)] * 2
        assert not served


async def test_a_slice_of_the_previous_epoch_is_not_served_once_the_next_epoch_is_known(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as cache:
        late = await read_from(ledger)
        ledger.epoch = uuid4()
        await cache.learn_epoch()
        assert cache.note_read(ORG, FEED, await read_from(ledger))
        assert not cache.note_read(ORG, FEED, late)
