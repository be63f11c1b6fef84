"""What a page costs: one round trip to Redis while it is cached, and one read of Postgres when it is lost."""

import asyncio
import random
import threading
from contextlib import asynccontextmanager, closing
from functools import partial

import psycopg
import pytest
import redis

from feeds.cached import writer
from feeds.cached.format import WINDOW
from feeds.cached.reader import CachedFeeds
from feeds.cached.worker_connection import WorkerConnection
from feeds.endpoint.asgi import read_epoch
from feeds.movement import Kind
from feeds.page import Filter, place_page
from feeds.postgres import Postgres
from feeds.read_through import Feeds, read
from feeds.single_flight import SingleFlight
from feeds.store import Store
from tests.conftest import clear_settings
from tests.integration.endpoint_asks import LINES, PATH
from tests.integration.feed_ledger import own_server
from tests.seed import CONSUME_AI, MIXED, USAGE_KINDS, seed, seed_published

NUMBERS = {kind: number for number, kind in enumerate(USAGE_KINDS)}
CACHED = ["MULTI", "HGET", "LRANGE", "EXEC"]


@pytest.fixture
def feeds_server(environment, monkeypatch, redis_program):
    """Give a server of the test's own that holds the feeds."""
    with own_server(program=redis_program) as server:
        monkeypatch.setenv("FEEDS_REDIS_URL", server.url)
        clear_settings()
        yield server


class Counted(Postgres):
    """Postgres, whose reads of feeds are counted."""

    reads = 0

    async def fetch(self, query, parameters, **options):
        self.reads += b"read_page" in query
        return await super().fetch(query, parameters, **options)


@asynccontextmanager
async def made(database_url, redis_url):
    """Give what an endpoint reads from."""
    postgres = Counted(database_url)
    try:
        cached = CachedFeeds(redis_url, partial(read_epoch, postgres))
        cached.multiplexer.reply_within_s = (
            5.0  # a thousand askers of one process: on a slow day more than a tenth of a second
        )
        async with cached:
            yield Feeds(Store(postgres, NUMBERS), SingleFlight(), cached)
    finally:
        await postgres.close()


def test_a_cached_page_costs_one_round_trip_whether_it_is_known_new_or_by_cursor(feeds_server, client, bearer, seeded):
    def ask(**params):
        return client.get(PATH, headers=bearer, params=params).json()["pages"]

    with redis.Redis.from_url(feeds_server.url) as control:

        def commands_of(**params):
            """Return what the server was told for one page by others than itself, but for looks at who it is."""
            with control.monitor() as monitor:
                pages = ask(**params)
                marker.echo("asked")
                told = []
                while (line := monitor.next_command())["command"] != "ECHO asked":
                    if line["client_type"] != "lua" and not line["command"].startswith("INFO"):
                        told.append(line["command"].split()[0])
            return told, pages

        with redis.Redis.from_url(feeds_server.url) as marker:
            marker.echo("connected")
            pages = ask()
            ask(cursor=pages["cursor"])  # from now on the server knows the script
            assert commands_of(limit=10)[0] == CACHED
            assert commands_of(page=3)[0] == CACHED
            assert commands_of(page=3)[0] == ["EVALSHA"]
            assert commands_of()[0] == ["EVALSHA"]
            with closing(WorkerConnection(feeds_server.url)) as link:
                writer.show(link, seeded, {"org_a": seed(seeded, "org_a", MIXED[:1])})
            told, pages = commands_of()
            assert (told, pages["total_items"]) == (["EVALSHA"], len(LINES) + 1)
            told, pages = commands_of(cursor=pages["next_cursor"])
            assert (told, pages["page"]) == (["EVALSHA"], 2)
            assert commands_of(cursor=pages["prev_cursor"])[0] == ["EVALSHA"]
            assert commands_of(cursor=pages["cursor"], limit=7)[0] == ["EVALSHA"]


@pytest.mark.anyio
async def test_a_thousand_readers_of_one_missing_feed_cost_one_read_of_postgres(database_url, redis_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", LINES)
    async with made(database_url, redis_url) as feeds:
        places = [place_page(1 + number % 5, 20) for number in range(1000)]
        pages = await asyncio.gather(*(read(feeds, "org_a", Filter(), place) for place in places))

        assert feeds.store.postgres.reads == 1
        assert {(page.total, page.newest, len(page.entries)) for page in pages} == {
            (len(LINES), len(LINES) - 20 * number, 20) for number in range(5)
        }


@pytest.mark.anyio
async def test_a_thousand_readers_beyond_the_window_share_their_reads(database_url, redis_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", LINES * 5)
    async with made(database_url, redis_url) as feeds:
        first = WINDOW // 20 + 1
        places = [place_page(first + number % 5, 20) for number in range(1000)]
        await asyncio.gather(*(read(feeds, "org_a", Filter(), place) for place in places))

        assert feeds.store.postgres.reads <= 5 * 5  # they come in a few waves, and each wave shares


@pytest.mark.anyio
async def test_a_redis_that_is_wiped_under_load_costs_few_reads_and_no_wrong_page(database_url, redis_url):
    feeds_asked = [Filter(), Filter(Kind.CONSUME), Filter(None, "ai_usage"), Filter(Kind.CONSUME, "ai_usage")]
    wipes, ended, shown = 10, threading.Event(), [len(LINES)]

    def write():
        rng = random.Random(1)
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not ended.is_set():
                many = rng.randrange(1, 9)
                seed_published(connection, redis_url, "org_a", [CONSUME_AI] * many)
                shown[0] += many  # whoever reads from now on sees them

    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", [CONSUME_AI] * len(LINES))
    async with made(database_url, redis_url) as feeds:

        async def keep_reading(number):
            pages, feed = 0, feeds_asked[number % len(feeds_asked)]
            while not ended.is_set():
                before, place = shown[0], place_page(1 + number % 3, 20)
                page = await read(feeds, "org_a", feed, place)
                assert page.total >= before
                assert page.newest == page.total - place.skip
                assert [entry.split(b'"usage_ref":"ref_')[1].split(b'"')[0] for entry in page.entries] == [
                    b"%d" % ordinal for ordinal in range(page.newest, page.newest - 20, -1)
                ]
                pages += 1
            return pages

        writer = asyncio.create_task(asyncio.to_thread(write))
        readers = [asyncio.create_task(keep_reading(number)) for number in range(24)]
        try:
            with redis.Redis.from_url(redis_url) as client:
                for _ in range(wipes):
                    await asyncio.sleep(0.2)  # the load between two wipes
                    client.flushall()
        finally:
            ended.set()
        await writer
        pages = sum(await asyncio.gather(*readers))

        # Each wipe loses four feeds; while lines arrive, a refill may be overtaken by them twice.
        assert feeds.store.postgres.reads <= (wipes + 1) * len(feeds_asked) * 3
        assert pages > 10 * feeds.store.postgres.reads
