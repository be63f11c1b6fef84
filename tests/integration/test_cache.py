"""The cached feeds on a real server: appended by the worker's side, read and refilled by the endpoint's."""

import asyncio
from uuid import uuid4

import pytest
import redis

from feeds.cached import format as proof
from feeds.cached import writer
from feeds.cached.format import Hit, Miss, MissReason
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
    link_to,
    read,
    until,
)

pytestmark = pytest.mark.anyio


async def test_a_feed_that_was_read_shows_every_later_append_without_postgres(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link:
            for kind in (Kind.CONSUME, Kind.ALLOT, Kind.CONSUME):
                assert writer.append(link, ledger.epoch, {ORG: ledger.post(ORG, 3, kind)}).appended == 1
                for number in (1, 2):
                    place = place_page(number, 20)
                    assert await feeds.page(ORG, FEED, place) == expected(ledger, place=place)
    assert ledger.reads == 1


async def test_organisations_that_nobody_reads_are_left_alone(redis_url):
    ledger = FeedLedger()
    with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
        assert writer.append(link, ledger.epoch, {ORG: ledger.post(ORG, 3)}).appended == 0
        assert client.dbsize() == 0


async def test_an_empty_feed_is_a_hit_and_its_first_line_is_shown(redis_url):
    ledger = FeedLedger()
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Hit(0, [])
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            writer.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
            assert all(0 < client.pttl(key) <= 600_000 for key in client.scan_iter())


async def test_beyond_the_window_the_count_alone_is_told(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger, window=25) as feeds:
        await read(feeds, ledger)
        assert await feeds.page(ORG, FEED, place_page(2, 20)) == Miss(MissReason.BEYOND, 30)
        assert await feeds.page(ORG, FEED, place_page(3, 10)) == Miss(MissReason.BEYOND, 30)
        assert await feeds.page(ORG, FEED, place_page(4, 10)) == Hit(30, [])
        assert await feeds.page(ORG, FEED, place_page(5, 5)) == expected(ledger, place=place_page(5, 5))
        assert await feeds.page(ORG, FEED, COUNT) == Hit(30, [])


async def test_a_cursor_keeps_its_place_while_lines_arrive(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        below = ledger.newest_first(ORG, FEED)[10:15]
        with link_to(redis_url) as link:
            for _ in range(3):
                assert (await feeds.page(ORG, FEED, Place(5, ceiling=20))).entries == below
                writer.append(link, ledger.epoch, {ORG: ledger.post(ORG, 2)})
        assert (await feeds.page(ORG, FEED, Place(5, ceiling=40, floor=35))).entries == ledger.newest_first(ORG, FEED)[
            :1
        ]
        assert (await feeds.page(ORG, FEED, Place(5, ceiling=45, floor=40))).entries == []
        assert (await feeds.page(ORG, FEED, Place(5, ceiling=3))).entries == ledger.newest_first(ORG, FEED)[-3:]


async def test_an_append_of_more_than_the_window_makes_the_list_anew(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            writer.append(link, ledger.epoch, {ORG: ledger.post(ORG, 450)})
            key = proof.list_key(hash_of(link, ledger), FEED)
            assert client.llen(key) == proof.WINDOW
            assert client.pttl(key) > 0
        assert await feeds.page(ORG, FEED, place_page(10, 20)) == expected(ledger, place=place_page(10, 20))


async def test_appends_in_the_wrong_order_serve_no_gap(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        older, newer = ledger.post(ORG, 3), ledger.post(ORG, 2)
        with link_to(redis_url) as link:
            writer.append(link, ledger.epoch, {ORG: newer})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.SHORT, 10)
            assert await read(feeds, ledger) == expected(ledger)
            writer.append(link, ledger.epoch, {ORG: older})
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_batch_of_which_a_refill_has_seen_a_part_adds_the_rest(redis_url):
    ledger = FeedLedger()
    seen = ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link:
            writer.append(link, ledger.epoch, {ORG: seen + ledger.post(ORG, 3)})
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
    assert ledger.reads == 1


async def test_lines_with_anothers_between_them_are_not_shown_as_neighbours(redis_url):
    ledger = FeedLedger()
    before = ledger.post(ORG, 7)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        between, after = ledger.post(ORG, 2), ledger.post(ORG, 2)
        with link_to(redis_url) as link:
            writer.append(link, ledger.epoch, {ORG: before[-2:] + after})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.SHORT, 11)
            assert await read(feeds, ledger) == expected(ledger)
            writer.append(link, ledger.epoch, {ORG: between})
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_refill_that_read_before_a_newer_append_is_refused(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        with link_to(redis_url) as link:
            fence = await feeds.fence(ORG, FEED)
            old = await ledger.reader(ORG, FEED)()
            writer.append(link, ledger.epoch, {ORG: ledger.post(ORG, 2)})

            assert not await feeds.put(fence, FEED, old)
            assert await feeds.page(ORG, FEED, COUNT) == Miss(MissReason.COLD)
            assert await read(feeds, ledger) == expected(ledger)
            assert not await feeds.put(fence, FEED, old)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_refill_reads_again_when_something_newer_came_and_returns_what_it_read_last(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        with link_to(redis_url) as link:
            read_newest = ledger.reader(ORG, FEED)

            async def read_while_lines_arrive():
                newest = await read_newest()
                writer.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
                return newest

            newest = await feeds.refill(ORG, FEED, read_while_lines_arrive)
        assert ledger.reads == 3
        assert newest.total == 7


async def test_a_later_append_that_passed_a_cold_feed_by_is_not_hidden_by_an_earlier_one(redis_url):
    ledger = FeedLedger()
    first, _second = ledger.post(ORG), ledger.post(ORG)
    async with cached_feeds(redis_url, ledger) as feeds:
        assert await feeds.fence(ORG, FEED)
        with link_to(redis_url) as link:
            writer.append(link, ledger.epoch, {ORG: first})
        assert await feeds.page(ORG, FEED, COUNT) == Miss(MissReason.COLD)
        assert await read(feeds, ledger) == expected(ledger)


async def test_no_refill_prolongs_the_life_of_what_was_cached_before(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            client.pexpire(hash_of(link, ledger), 5_000)
            await feeds.refill(ORG, 1, ledger.reader(ORG, 1))
            assert 0 < client.pttl(hash_of(link, ledger)) <= 5_000
            assert 0 < client.pttl(proof.list_key(hash_of(link, ledger), 1)) <= 5_000


async def test_a_page_is_never_older_than_one_already_served(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        feeds.remember(ORG, FEED, 6, of_epoch=ledger.epoch)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.OLDER)
        assert await feeds.page(ORG, FEED, COUNT) == Miss(MissReason.OLDER)


async def test_a_restored_ledger_is_served_under_its_new_epoch(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 8)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        ledger.feeds.clear()
        ledger.post(ORG, 5)
        ledger.epoch = uuid4()
        await until(lambda: feeds.epoch == ledger.epoch)

        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Miss(MissReason.COLD)
        assert await read(feeds, ledger) == expected(ledger)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_one_look_tells_all_that_is_cached_of_an_organisation(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger, window=3) as feeds:
        for feed in (0, 1, 2):
            await feeds.refill(ORG, feed, ledger.reader(ORG, feed))
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            client.lpush(proof.list_key(hash_of(link, ledger), 1), "nonsense")
            newest = Hit(5, ledger.newest_first(ORG, 0)[:3])
            looked = writer.look(link, ledger.epoch, ORG, range(12))
            assert looked == {0: newest, 1: Miss(MissReason.CORRUPT), 2: Hit(0, [])}
            client.lpush(proof.list_key(hash_of(link, ledger), 2), "nonsense")
            assert writer.look(link, ledger.epoch, ORG, [2]) == {2: Miss(MissReason.TORN)}


async def test_dropped_organisations_leave_nothing(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            assert writer.drop(link, ledger.epoch, [ORG, "org_b"]) == 1
            assert client.dbsize() == 0


async def test_a_total_of_an_epoch_that_ended_while_it_was_asked_for_is_not_remembered_for_the_next(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        feeds.seen.clear()
        check = feeds.check(ORG, FEED, place_page(1, 20), ledger.total(ORG, FEED))
        asked = [
            asyncio.create_task(feeds.page(ORG, FEED, place_page(1, 20))),
            asyncio.create_task(feeds.revalidate(ORG, check)),
        ]
        await asyncio.sleep(0)  # they are on their way
        feeds.ended, feeds.epoch = feeds.epoch, uuid4()
        assert await asyncio.gather(*asked) == [Miss(MissReason.AWAY)] * 2
        assert not feeds.seen


async def test_a_slice_of_the_epoch_before_is_not_admitted_once_the_next_is_known(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        late = await ledger.reader(ORG, FEED)()
        ledger.epoch = uuid4()
        await feeds.learn_epoch()
        assert feeds.admit(ORG, FEED, await ledger.reader(ORG, FEED)())
        assert not feeds.admit(ORG, FEED, late)
