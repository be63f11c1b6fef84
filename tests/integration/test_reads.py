"""What a page costs: one round trip to Redis while it is cached, and one read of Postgres if it is not."""

import asyncio
import random
import threading
from contextlib import asynccontextmanager, closing
from functools import partial

import psycopg
import pytest
import redis

from feeds.cached import writer
from feeds.cached.epoch import fetch_epoch
from feeds.cached.format import WINDOW
from feeds.cached.reader import CachedFeeds
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import Kind
from feeds.page import Filter, place_page
from feeds.postgres import Postgres
from feeds.read_through import Feeds, read
from feeds.single_flight import SingleFlight
from feeds.store import Store
from tests.conftest import clear_settings
from tests.integration.endpoint_requests import MOVEMENTS, PATH
from tests.integration.feed_ledger import own_server
from tests.seed import CONSUME_AI, MIXED, USAGE_KINDS, seed, seed_published

NUMBERS = {kind: number for number, kind in enumerate(USAGE_KINDS)}
COMMANDS_OF_A_NEW_PAGE = ["MULTI", "HGET", "LRANGE", "EXEC"]


@pytest.fixture
def feeds_server(environment, monkeypatch, redis_program):
    """Give a Redis that the test owns, which holds the feeds."""
    with own_server(program=redis_program) as server:
        monkeypatch.setenv("FEEDS_REDIS_URL", server.url)
        clear_settings()
        yield server


class CountingPostgres(Postgres):
    """Counts the reads of feeds."""

    reads = 0

    async def fetch(self, query, parameters, **options):
        self.reads += b"read_page" in query
        return await super().fetch(query, parameters, **options)


@asynccontextmanager
async def open_feeds(database_url, redis_url):
    """Give what an endpoint reads from."""
    postgres = CountingPostgres(database_url)
    try:
        cache = CachedFeeds(redis_url, partial(fetch_epoch, postgres))
        # A thousand callers in one process may wait for more than a tenth of a second on a slow machine.
        cache.multiplexer.reply_within_s = 5.0
        async with cache:
            yield Feeds(Store(postgres, NUMBERS), SingleFlight(), cache)
    finally:
        await postgres.close()


def test_a_cached_page_costs_one_round_trip_whether_it_is_new_repeated_or_by_cursor(
    feeds_server, client, bearer, seeded
):
    def get(**params):
        return client.get(PATH, headers=bearer, params=params).json()["pages"]

    with redis.Redis.from_url(feeds_server.url) as control:

        def commands_of(**params):
            """Return the commands that one page sends to the server, without those that identify the server."""
            with control.monitor() as monitor:
                pages = get(**params)
                marker.echo("end")
                commands = []
                while (sent := monitor.next_command())["command"] != "ECHO end":
                    if sent["client_type"] != "lua" and not sent["command"].startswith("INFO"):
                        commands.append(sent["command"].split()[0])
            return commands, pages

        with redis.Redis.from_url(feeds_server.url) as marker:
            marker.echo("connected")
            pages = get()
            get(cursor=pages["cursor"])  # from now on the server knows the script
            assert commands_of(limit=10)[0] == COMMANDS_OF_A_NEW_PAGE
            assert commands_of(page=3)[0] == COMMANDS_OF_A_NEW_PAGE
            assert commands_of(page=3)[0] == ["EVALSHA"]
            assert commands_of()[0] == ["EVALSHA"]
            with closing(WorkerConnection(feeds_server.url)) as feeds_redis:
                writer.publish(feeds_redis, seeded, {"org_a": seed(seeded, "org_a", MIXED[:1])})
            commands, pages = commands_of()
            assert (commands, pages["total_items"]) == (["EVALSHA"], len(MOVEMENTS) + 1)
            commands, pages = commands_of(cursor=pages["next_cursor"])
            assert (commands, pages["page"]) == (["EVALSHA"], 2)
            assert commands_of(cursor=pages["prev_cursor"])[0] == ["EVALSHA"]
            assert commands_of(cursor=pages["cursor"], limit=7)[0] == ["EVALSHA"]


@pytest.mark.anyio
async def test_a_thousand_concurrent_readers_of_one_cold_feed_cost_one_read_of_postgres(database_url, redis_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", MOVEMENTS)
    async with open_feeds(database_url, redis_url) as feeds:
        places = [place_page(1 + number % 5, 20) for number in range(1000)]
        pages = await asyncio.gather(*(read(feeds, "org_a", Filter(), place) for place in places))

        assert feeds.store.postgres.reads == 1
        assert {(page.total, page.newest, len(page.items)) for page in pages} == {
            (len(MOVEMENTS), len(MOVEMENTS) - 20 * number, 20) for number in range(5)
        }


@pytest.mark.anyio
async def test_a_thousand_concurrent_readers_beyond_the_window_share_their_reads(database_url, redis_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", MOVEMENTS * 5)
    async with open_feeds(database_url, redis_url) as feeds:
        first = WINDOW // 20 + 1
        places = [place_page(first + number % 5, 20) for number in range(1000)]
        await asyncio.gather(*(read(feeds, "org_a", Filter(), place) for place in places))

        assert feeds.store.postgres.reads <= 5 * 5  # the readers come in a few waves, and each wave shares


@pytest.mark.anyio
async def test_a_redis_that_is_flushed_under_load_costs_few_reads_and_no_wrong_page(database_url, redis_url):
    filters = [Filter(), Filter(Kind.CONSUME), Filter(None, "ai_usage"), Filter(Kind.CONSUME, "ai_usage")]
    flushes, ended, published = 10, threading.Event(), [len(MOVEMENTS)]

    def write():
        rng = random.Random(1)
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not ended.is_set():
                count = rng.randrange(1, 9)
                seed_published(connection, redis_url, "org_a", [CONSUME_AI] * count)
                published[0] += count  # every read that starts now must include them

    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", [CONSUME_AI] * len(MOVEMENTS))
    async with open_feeds(database_url, redis_url) as feeds:

        async def keep_reading(number):
            pages, feed = 0, filters[number % len(filters)]
            while not ended.is_set():
                before, place = published[0], place_page(1 + number % 3, 20)
                page = await read(feeds, "org_a", feed, place)
                assert page.total >= before
                assert page.newest == page.total - place.skip
                assert [item.split(b'"usage_ref":"ref_')[1].split(b'"')[0] for item in page.items] == [
                    b"%d" % ordinal for ordinal in range(page.newest, page.newest - 20, -1)
                ]
                pages += 1
            return pages

        writing = asyncio.create_task(asyncio.to_thread(write))
        readers = [asyncio.create_task(keep_reading(number)) for number in range(24)]
        try:
            with redis.Redis.from_url(redis_url) as client:
                for _ in range(flushes):
                    await asyncio.sleep(0.2)  # load between two flushes
                    client.flushall()
        finally:
            ended.set()
        await writing
        pages = sum(await asyncio.gather(*readers))

        # Each flush makes four feeds cold. While movements are appended, two refills of a feed may be refused.
        assert feeds.store.postgres.reads <= (flushes + 1) * len(filters) * 3
        assert pages > 10 * feeds.store.postgres.reads
