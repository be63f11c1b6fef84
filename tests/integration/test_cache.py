"""The cached feeds on a real server: appended by the worker's side, read and refilled by the endpoint's."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager, contextmanager
from uuid import uuid4

import psycopg
import pytest
import redis

from feeds import cache, cached_page
from feeds.cached_feeds import CachedFeeds
from feeds.cached_page import FeedsAway, Found, Miss, Missed
from feeds.link import Link
from feeds.movement import Kind
from feeds.page import Place, place_page
from tests.integration.feed_ledger import PROGRAMS, FeedLedger, own_server

pytestmark = pytest.mark.anyio
ORG = "org_a"
FEED = 0


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=PROGRAMS)
def redis_program(request):
    """The server of the wheel, and Redis itself where this machine has it."""
    return request.param


@contextmanager
def link_to(url):
    link = Link(url)
    try:
        yield link
    finally:
        link.close()


@asynccontextmanager
async def cached_feeds(url, ledger, **more):
    async with CachedFeeds(url, ledger.read_epoch, **more) as feeds:
        yield feeds


async def read(feeds, ledger, feed=FEED, place=None):
    """Read the first page as an endpoint does: from the cache, else refilled."""
    place = place or place_page(1, 20)
    answer = await feeds.page(ORG, feed, place)
    if isinstance(answer, Found):
        return answer
    newest = await feeds.refill(ORG, feed, ledger.reader(ORG, feed))
    return Found(newest.total, newest.entries[place.skip : place.skip + place.limit])


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- others set no event for it
            await asyncio.sleep(0.01)


def hash_of(link, ledger, org_id=ORG):
    return cached_page.hash_key(cached_page.stamp(ledger.epoch, link.server()), org_id)


def expected(ledger, feed=FEED, place=None):
    place = place or place_page(1, 20)
    return Found(ledger.total(ORG, feed), ledger.newest_first(ORG, feed)[place.skip : place.skip + place.limit])


async def test_a_feed_that_was_read_shows_every_later_append_without_postgres(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link:
            for kind in (Kind.CONSUME, Kind.ALLOT, Kind.CONSUME):
                assert cache.append(link, ledger.epoch, {ORG: ledger.post(ORG, 3, kind)}).appended == 1
                for number in (1, 2):
                    place = place_page(number, 20)
                    assert await feeds.page(ORG, FEED, place) == expected(ledger, place=place)
    assert ledger.reads == 1


async def test_organisations_that_nobody_reads_are_left_alone(redis_url):
    ledger = FeedLedger()
    with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
        assert cache.append(link, ledger.epoch, {ORG: ledger.post(ORG, 3)}).appended == 0
        assert client.dbsize() == 0


async def test_an_empty_feed_is_a_hit_and_its_first_line_is_shown(redis_url):
    ledger = FeedLedger()
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Found(0, [])
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            cache.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
            assert all(0 < client.pttl(key) <= 600_000 for key in client.scan_iter())


async def test_beyond_the_window_the_count_alone_is_told(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger, window=25) as feeds:
        await read(feeds, ledger)
        assert await feeds.page(ORG, FEED, place_page(2, 20)) == Missed(Miss.BEYOND, 30)
        assert await feeds.page(ORG, FEED, place_page(3, 10)) == Missed(Miss.BEYOND, 30)
        assert await feeds.page(ORG, FEED, place_page(4, 10)) == Found(30, [])
        assert await feeds.page(ORG, FEED, place_page(5, 5)) == expected(ledger, place=place_page(5, 5))
        assert await feeds.count(ORG, FEED) == Found(30, [])


async def test_a_cursor_keeps_its_place_while_lines_arrive(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        below = ledger.newest_first(ORG, FEED)[10:15]
        with link_to(redis_url) as link:
            for _ in range(3):
                assert (await feeds.page(ORG, FEED, Place(5, ceiling=20))).entries == below
                cache.append(link, ledger.epoch, {ORG: ledger.post(ORG, 2)})
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
            cache.append(link, ledger.epoch, {ORG: ledger.post(ORG, 450)})
            key = cached_page.list_key(hash_of(link, ledger), FEED)
            assert client.llen(key) == cached_page.WINDOW
            assert client.pttl(key) > 0
        assert await feeds.page(ORG, FEED, place_page(10, 20)) == expected(ledger, place=place_page(10, 20))


async def test_appends_in_the_wrong_order_serve_no_gap(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        older, newer = ledger.post(ORG, 3), ledger.post(ORG, 2)
        with link_to(redis_url) as link:
            cache.append(link, ledger.epoch, {ORG: newer})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.SHORT, 10)
            assert await read(feeds, ledger) == expected(ledger)
            cache.append(link, ledger.epoch, {ORG: older})
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_batch_of_which_a_refill_has_seen_a_part_adds_the_rest(redis_url):
    ledger = FeedLedger()
    seen = ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link:
            cache.append(link, ledger.epoch, {ORG: seen + ledger.post(ORG, 3)})
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
    assert ledger.reads == 1


async def test_lines_with_anothers_between_them_are_not_shown_as_neighbours(redis_url):
    ledger = FeedLedger()
    before = ledger.post(ORG, 7)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        between, after = ledger.post(ORG, 2), ledger.post(ORG, 2)
        with link_to(redis_url) as link:
            cache.append(link, ledger.epoch, {ORG: before[-2:] + after})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.SHORT, 11)
            assert await read(feeds, ledger) == expected(ledger)
            cache.append(link, ledger.epoch, {ORG: between})
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_refill_that_read_before_a_newer_append_is_refused(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        with link_to(redis_url) as link:
            fence = await feeds.fence(ORG, FEED)
            old = await ledger.reader(ORG, FEED)()
            cache.append(link, ledger.epoch, {ORG: ledger.post(ORG, 2)})

            assert not await feeds.put(fence, FEED, old)
            assert await feeds.count(ORG, FEED) == Missed(Miss.COLD)
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
                cache.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
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
            cache.append(link, ledger.epoch, {ORG: first})
        assert await feeds.count(ORG, FEED) == Missed(Miss.COLD)
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
            assert 0 < client.pttl(cached_page.list_key(hash_of(link, ledger), 1)) <= 5_000


@pytest.mark.parametrize("count", [b"5", b"4 00000000", b"6 ", b"", b"99999999999999999999 12345678", b"x"])
async def test_a_damaged_count_is_a_miss_and_is_repaired(redis_url, count):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            client.hset(hash_of(link, ledger), str(FEED), count)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.CORRUPT)
            assert await feeds.count(ORG, FEED) == Missed(Miss.CORRUPT)
            assert await read(feeds, ledger) == expected(ledger)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)

            client.hset(hash_of(link, ledger), str(FEED), count)
            cache.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.COLD)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda entry: entry.replace(b'"credits":', b'"credits":1'), Miss.CORRUPT),
        (lambda entry: entry[:-1], Miss.CORRUPT),
        (lambda entry: b"", Miss.CORRUPT),
        (lambda entry: b"{}", Miss.CORRUPT),
        (lambda entry: b"\xff" * 300, Miss.CORRUPT),
        (lambda entry: entry.replace(b"3 ", b"2 ", 1), Miss.TORN),
    ],
)
async def test_a_damaged_entry_is_a_miss_and_is_repaired(redis_url, damage, reason):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            key = cached_page.list_key(hash_of(link, ledger), FEED)
            client.lset(key, 2, damage(client.lindex(key, 2)))
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(reason)
            assert await read(feeds, ledger) == expected(ledger)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_an_entry_of_another_rendering_is_a_miss(redis_url, monkeypatch):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        with monkeypatch.context() as older:
            older.setattr(cached_page, "RENDERING", cached_page.RENDERING + 1)
            await read(feeds, ledger)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.CORRUPT)
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
            client.copy(cached_page.list_key(theirs, FEED), cached_page.list_key(ours, FEED), replace=True)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.CORRUPT)
            client.copy(theirs, ours, replace=True)
            assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.CORRUPT)


async def test_keys_of_another_type_are_a_miss_and_are_repaired(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            for key in (hash_of(link, ledger), cached_page.list_key(hash_of(link, ledger), FEED)):
                client.set(key, "nonsense")
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.CORRUPT)
                assert await read(feeds, ledger) == await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)
                client.set(key, "nonsense")
                assert cache.append(link, ledger.epoch, {ORG: ledger.post(ORG)}).refused == 1
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
                    cache.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
                assert await read(feeds, ledger) == expected(ledger)
    assert ledger.reads <= 12


async def test_a_page_is_never_older_than_one_already_served(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        feeds.remember(ORG, FEED, 6, of_epoch=ledger.epoch)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.OLDER)
        assert await feeds.count(ORG, FEED) == Missed(Miss.OLDER)


async def test_a_restored_ledger_is_served_under_its_new_epoch(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 8)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        ledger.feeds.clear()
        ledger.post(ORG, 5)
        ledger.epoch = uuid4()
        await until(lambda: feeds.epoch == ledger.epoch)

        assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.COLD)
        assert await read(feeds, ledger) == expected(ledger)
        assert await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_one_look_tells_all_that_is_cached_of_an_organisation(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger, window=3) as feeds:
        for feed in (0, 1, 2):
            await feeds.refill(ORG, feed, ledger.reader(ORG, feed))
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            client.lpush(cached_page.list_key(hash_of(link, ledger), 1), "nonsense")
            newest = Found(5, ledger.newest_first(ORG, 0)[:3])
            looked = cache.look(link, ledger.epoch, ORG, range(12))
            assert looked == {0: newest, 1: Missed(Miss.CORRUPT), 2: Found(0, [])}
            client.lpush(cached_page.list_key(hash_of(link, ledger), 2), "nonsense")
            assert cache.look(link, ledger.epoch, ORG, [2]) == {2: Missed(Miss.TORN)}


async def test_dropped_organisations_leave_nothing(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    async with cached_feeds(redis_url, ledger) as feeds:
        await read(feeds, ledger)
        with link_to(redis_url) as link, redis.Redis.from_url(redis_url) as client:
            assert cache.drop(link, ledger.epoch, [ORG, "org_b"]) == 1
            assert client.dbsize() == 0


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

                shown = cache.append(link, ledger.epoch, {ORG: ledger.post(ORG, 2)})
                assert (shown.appended, shown.refused) == (0, 1)
                assert await read(feeds, ledger) == expected(ledger)
                assert await feeds.page("org_b", FEED, place_page(1, 5)) == Found(5, ledger.newest_first("org_b", FEED))

                client.config_set("maxmemory", 0)
                assert await read(feeds, ledger) == await feeds.page(ORG, FEED, place_page(1, 20)) == expected(ledger)


async def test_a_failover_there_and_back_brings_no_page_from_before(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    with own_server(program=redis_program) as server, own_server(program=redis_program) as other:
        async with cached_feeds(server.url, ledger) as feeds:
            await read(feeds, ledger)
            with link_to(server.url) as link, redis.Redis.from_url(server.url) as client:
                link.server()
                old = feeds.gathered.server
                port = redis.Redis.from_url(other.url).connection_pool.connection_kwargs["port"]
                client.config_set("repl-timeout", 1)
                client.replicaof("127.0.0.1", port)
                posted = ledger.post(ORG)
                with pytest.raises(FeedsAway):
                    cache.append(link, ledger.epoch, {ORG: posted})
                await until(lambda: feeds.gathered.server is None)
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.AWAY)

                client.replicaof("NO", "ONE")
                await until(lambda: feeds.gathered.server is not None)
                assert feeds.gathered.server != old
                assert await feeds.page(ORG, FEED, place_page(1, 20)) == Missed(Miss.COLD)
                cache.append(link, ledger.epoch, {ORG: posted})
                assert await read(feeds, ledger) == expected(ledger)


async def test_the_worker_notices_a_failover_there_and_back_on_a_connection_that_survived(redis_program):
    ledger = FeedLedger()
    with own_server(program=redis_program) as server, link_to(server.url) as link:
        old = link.server()
        with redis.Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", 1)
            client.replicaof("NO", "ONE")
        with pytest.raises(FeedsAway, match="failover"):
            cache.append(link, ledger.epoch, {ORG: ledger.post(ORG)})
        assert link.server() != old


@pytest.fixture
def ledger_row(database_url):
    """A connection to a migrated database, whose `ledger` row has an epoch."""
    with psycopg.connect(database_url) as connection:
        yield connection


def test_showing_a_batch_reads_the_epoch_after_the_commit_and_drops_what_is_repeated(redis_url, ledger_row):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    ledger.post("org_b", 5)
    ledger.epoch = cache.read_epoch(ledger_row)

    async def refilled():
        async with cached_feeds(redis_url, ledger) as feeds:
            for org_id in (ORG, "org_b"):
                await feeds.refill(org_id, FEED, ledger.reader(org_id, FEED))

    asyncio.run(refilled())
    with link_to(redis_url) as link:
        posted = {org_id: ledger.post(org_id) for org_id in (ORG, "org_b")}
        shown = cache.show(link, ledger_row, posted, repeated=["org_b"])
        assert shown == cache.Shown(appended=1, dropped=1)
    assert cache.read_epoch(ledger_row) == ledger.epoch


def test_feeds_away_for_over_a_second_are_given_up_by_a_new_epoch(ledger_row):
    ledger = FeedLedger()
    before = cache.read_epoch(ledger_row)
    with own_server() as server, link_to(server.url) as link:
        assert not cache.show(link, ledger_row, {ORG: ledger.post(ORG)}).epoch_renewed
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            assert cache.show(link, ledger_row, {ORG: ledger.post(ORG)}).epoch_renewed
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        after = cache.read_epoch(ledger_row)
        assert after != before
        assert not cache.show(link, ledger_row, {ORG: ledger.post(ORG)}).epoch_renewed
        assert link.away_since is None
    assert cache.read_epoch(ledger_row) == after


def test_an_epoch_that_another_process_ended_is_not_renewed_again(ledger_row):
    before = cache.read_epoch(ledger_row)
    cache.renew_epoch(ledger_row, before)
    after = cache.read_epoch(ledger_row)
    cache.renew_epoch(ledger_row, before)
    assert cache.read_epoch(ledger_row) == after != before
