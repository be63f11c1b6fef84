"""The requests of one process share one connection: they are sent as one pipeline, and they fail together."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
import redis

from feeds.cached import format as cache_format
from feeds.cached import multiplexer
from feeds.cached.format import FeedsAway, Hit, Miss, MissReason
from feeds.cached.multiplexer import REPLY_WITHIN_S, Multiplexer
from feeds.cached.protocol import pack
from feeds.cached.reader import CachedFeeds
from feeds.page import place_page
from feeds.postgres import PostgresAway
from tests.integration.feed_ledger import FEED, ORG, FeedLedger, own_server, refill, until

pytestmark = pytest.mark.anyio

FIRST_PAGE = place_page(1, 20)


@asynccontextmanager
async def connected(url, **options):
    connection = Multiplexer(url, **options)
    await asyncio.wait_for(connection.start(), 5)
    try:
        yield connection
    finally:
        await connection.close()


class Relay:
    """A proxy in front of a server. It counts what it passes on, and can stop passing it on or cut connections."""

    def __init__(self, url):
        self.target = urlsplit(url)
        self.chunks = 0
        self.passes = asyncio.Event()
        self.passes.set()
        self.writers = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = self.target._replace(netloc=f":{self.target.password or ''}@127.0.0.1:{port}").geturl()
        return self

    async def __aexit__(self, *_):
        self.cut()
        self.passes.set()
        self.server.close()
        await asyncio.sleep(0.05)

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers = []

    async def serve(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection(self.target.hostname, self.target.port)
        self.writers += [writer, far_writer]
        await asyncio.gather(self.pass_on(reader, far_writer, count=True), self.pass_on(far_reader, writer))

    async def pass_on(self, reader, writer, *, count=False):
        try:
            while data := await reader.read(1 << 20):
                self.chunks += count
                await self.passes.wait()
                writer.write(data)
        except OSError:
            pass
        writer.transport.abort()


async def test_concurrent_requests_are_sent_as_one_pipeline_and_each_gets_its_own_replies(redis_url):
    async with Relay(redis_url) as relay, connected(relay.url) as connection:
        before = relay.chunks
        commands = [[("SET", f"k{i}", i), ("GET", f"k{i}"), ("LRANGE", f"k{i}", 0, -1)] for i in range(50)]
        answers = await asyncio.gather(*map(connection.run_block, commands))

        assert [answer[1] for answer in answers] == [b"%d" % i for i in range(50)]
        assert all(str(answer[2]).startswith("WRONGTYPE") for answer in answers)
        assert relay.chunks == before + 1


async def test_a_shared_command_is_sent_once_in_each_turn_of_the_event_loop(redis_url):
    async with connected(redis_url) as connection:
        with redis.Redis.from_url(redis_url) as client:
            before = client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]
            for turn in (1, 2):
                client.set("number", turn)
                answers = await asyncio.gather(*(connection.send_shared(pack(("GET", "number"))) for _ in range(20)))
                assert answers == [[str(turn).encode()]] * 20
                assert client.info("commandstats")["cmdstat_get"]["calls"] == before + turn


async def test_a_cached_page_costs_one_round_trip(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with Relay(redis_url) as relay, CachedFeeds(relay.url, ledger.fetch_epoch) as cache:
        await refill(cache, ledger)
        for _ in range(5):
            before = relay.chunks
            assert isinstance(await cache.read(ORG, FEED, FIRST_PAGE), Hit)
            assert relay.chunks == before + 1


async def test_a_slow_connection_fails_all_its_requests_in_time_and_is_replaced(redis_url):
    async with Relay(redis_url) as relay, connected(relay.url) as connection:
        relay.passes.clear()
        began = time.monotonic()
        answers = await asyncio.gather(
            *(connection.run_block([("GET", "a")]) for _ in range(20)), return_exceptions=True
        )

        assert all(isinstance(answer, FeedsAway) for answer in answers)
        assert time.monotonic() - began < 0.5
        assert connection.server is None
        relay.passes.set()
        await until(lambda: connection.server is not None)
        assert await connection.run_block([("GET", "a")]) == [None]


async def test_a_cut_connection_fails_its_requests_at_once_and_is_replaced(redis_url):
    async with Relay(redis_url) as relay, connected(relay.url, reply_within_s=5.0) as connection:
        relay.passes.clear()
        requests = asyncio.gather(*(connection.run_block([("GET", "a")]) for _ in range(20)), return_exceptions=True)
        await asyncio.sleep(0)
        began = time.monotonic()
        relay.cut()

        assert all(isinstance(answer, FeedsAway) for answer in await requests)
        assert time.monotonic() - began < 1.0
        relay.passes.set()
        await until(lambda: connection.server is not None)


async def test_without_a_connection_requests_fail_at_once(unused_port):
    async with connected(f"redis://127.0.0.1:{unused_port}/0") as connection:
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(FeedsAway):
                await connection.run_block([("GET", "a")])
        assert time.monotonic() - began < 0.5


@pytest.fixture
def unused_port():
    with own_server() as server:
        gone = urlsplit(server.url)
    return gone.port


async def test_a_cancelled_request_does_not_take_replies_from_the_others(redis_url):
    async with connected(redis_url) as connection:
        cancelled = asyncio.create_task(connection.run_block([("SET", "a", 1)]))
        other = asyncio.create_task(connection.run_block([("GET", "b")]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await other == [None]
        assert await connection.run_block([("GET", "a")]) == [b"1"]


async def test_the_url_names_user_password_and_database(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">a:b c", "~*", "+@all")
        try:
            address = urlsplit(redis_url)
            url = f"redis://reader:a%3Ab%20c@{address.hostname}:{address.port}/3"
            async with connected(url) as connection:
                assert await connection.run_block([("ACL", "WHOAMI"), ("SET", "here", 1)]) == [b"reader", b"OK"]
            assert client.dbsize() == 0
            async with connected(url.replace("a%3Ab", "wrong")) as connection:
                assert connection.server is None
                assert "WRONGPASS" in connection.last_error
        finally:
            client.execute_command("ACL", "DELUSER", "reader")


async def test_a_full_redis_still_answers_reads(redis_program):
    with own_server(program=redis_program) as server, redis.Redis.from_url(server.url) as client:
        client.rpush("list", "a", "b")
        async with connected(server.url) as connection:
            client.config_set("maxmemory", 1)
            assert await connection.run_block([("GET", "x"), ("LRANGE", "list", 0, -1)]) == [None, [b"a", b"b"]]


async def test_after_a_reconnect_the_epoch_is_learnt_before_the_server_is_used(redis_program):
    ledger, refused = FeedLedger(), asyncio.Event()
    ledger.post(ORG, 5)
    postgres_is_away = False

    async def fetch_epoch():
        if postgres_is_away:
            refused.set()
            raise PostgresAway("down")
        return ledger.epoch

    with own_server(program=redis_program) as server:
        async with CachedFeeds(server.url, fetch_epoch) as cache:
            await refill(cache, ledger)
            assert isinstance(await cache.read(ORG, FEED, FIRST_PAGE), Hit)

            postgres_is_away = True
            await refused.wait()
            assert isinstance(await cache.read(ORG, FEED, FIRST_PAGE), Hit)

            with redis.Redis.from_url(server.url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: cache.multiplexer.server is None)
            assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.AWAY)
            await until(lambda: "no epoch" in cache.multiplexer.last_error)

            postgres_is_away = False
            await until(lambda: cache.multiplexer.server is not None)
            assert isinstance(await cache.read(ORG, FEED, FIRST_PAGE), Hit)


async def test_an_unexpected_error_is_logged_once_and_does_not_end_the_attempts_to_connect(redis_url, caplog):
    errors = [FeedsAway("expected"), KeyError("run_id"), KeyError("run_id")]

    async def before_use():
        if errors:
            raise errors.pop(0)

    async with connected(redis_url, before_use=before_use) as connection:
        assert (connection.server, connection.last_error) == (None, "expected")
        await until(lambda: connection.server is not None)
        assert await connection.run_block([("GET", "a")]) == [None]
    assert errors == []
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


async def test_an_info_reply_without_ids_does_not_end_the_attempts_to_connect(redis_url, monkeypatch):
    replies = [b"role:master\r\n"]

    def read_server(info):
        return cache_format.read_server(replies.pop() if replies else info)

    monkeypatch.setattr(multiplexer, "read_server", read_server)
    async with connected(redis_url) as connection:
        assert (connection.server, connection.last_error) == (None, "KeyError")
        await until(lambda: connection.server is not None)


async def test_a_server_that_hangs_costs_one_request_a_tenth_of_a_second_and_the_next_ones_nothing(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    with own_server(program=redis_program) as server:
        async with CachedFeeds(server.url, ledger.fetch_epoch) as cache:
            await refill(cache, ledger)
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                for within_s in (REPLY_WITHIN_S + 0.3, 0.1):
                    began = time.monotonic()
                    assert await cache.read(ORG, FEED, FIRST_PAGE) == Miss(MissReason.AWAY)
                    assert time.monotonic() - began < within_s
                newest = await refill(cache, ledger)
                assert newest.total == 5
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            await until(lambda: cache.multiplexer.server is not None)
            assert isinstance(await cache.read(ORG, FEED, FIRST_PAGE), Hit)
