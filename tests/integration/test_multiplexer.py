"""The one connection that a process's requests share: together in one pipeline, and given up together."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
import redis

from feeds.cached import multiplexer as gathered
from feeds.cached.format import FeedsAway, Hit, Miss, MissReason
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.protocol import pack
from feeds.cached.reader import CachedFeeds
from feeds.page import place_page
from feeds.postgres import PostgresAway
from tests.integration.feed_ledger import ORG, FeedLedger, own_server, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(url, **more):
    connection = Multiplexer(url, **more)
    await connection.start()
    try:
        yield connection
    finally:
        await connection.close()


class Relay:
    """A way to a server that counts what passes, and that can be slowed down or cut."""

    def __init__(self, url):
        self.target = urlsplit(url)
        self.chunks = 0
        self.open = asyncio.Event()
        self.open.set()
        self.writers = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = self.target._replace(netloc=f":{self.target.password or ''}@127.0.0.1:{port}").geturl()
        return self

    async def __aexit__(self, *_):
        self.cut()
        self.open.set()
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
                await self.open.wait()
                writer.write(data)
        except OSError:
            pass
        writer.transport.abort()


async def test_concurrent_requests_leave_as_one_pipeline_and_each_gets_its_own_replies(redis_url):
    async with Relay(redis_url) as relay, connected(relay.url) as connection:
        before = relay.chunks
        commands = [[("SET", f"k{i}", i), ("GET", f"k{i}"), ("LRANGE", f"k{i}", 0, -1)] for i in range(50)]
        answers = await asyncio.gather(*map(connection.block, commands))

        assert [answer[1] for answer in answers] == [b"%d" % i for i in range(50)]
        assert all(str(answer[2]).startswith("WRONGTYPE") for answer in answers)
        assert relay.chunks == before + 1


async def test_a_question_of_many_in_one_turn_is_sent_once_and_again_in_the_next(redis_url):
    async with connected(redis_url) as connection:
        with redis.Redis.from_url(redis_url) as client:
            before = client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]
            for turn in (1, 2):
                client.set("number", turn)
                answers = await asyncio.gather(*(connection.share(pack(("GET", "number"))) for _ in range(20)))
                assert answers == [[str(turn).encode()]] * 20
                assert client.info("commandstats")["cmdstat_get"]["calls"] == before + turn


async def test_a_cached_page_costs_one_round_trip(redis_url):
    ledger = FeedLedger()
    ledger.post(ORG, 30)
    async with Relay(redis_url) as relay, CachedFeeds(relay.url, ledger.read_epoch) as feeds:
        await feeds.refill(ORG, 0, ledger.reader(ORG, 0))
        for _ in range(5):
            before = relay.chunks
            assert isinstance(await feeds.page(ORG, 0, place_page(1, 20)), Hit)
            assert relay.chunks == before + 1


async def test_a_slow_connection_fails_all_its_requests_in_time_and_is_replaced(redis_url):
    async with Relay(redis_url) as relay, connected(relay.url) as connection:
        relay.open.clear()
        began = time.monotonic()
        answers = await asyncio.gather(*(connection.block([("GET", "a")]) for _ in range(20)), return_exceptions=True)

        assert all(isinstance(answer, FeedsAway) for answer in answers)
        assert time.monotonic() - began < 0.5
        assert connection.server is None
        relay.open.set()
        await until(lambda: connection.server is not None)
        assert await connection.block([("GET", "a")]) == [None]


async def test_a_cut_connection_fails_its_requests_at_once_and_is_replaced(redis_url):
    async with Relay(redis_url) as relay, connected(relay.url, reply_within_s=5.0) as connection:
        relay.open.clear()
        asking = asyncio.gather(*(connection.block([("GET", "a")]) for _ in range(20)), return_exceptions=True)
        await asyncio.sleep(0)
        began = time.monotonic()
        relay.cut()

        assert all(isinstance(answer, FeedsAway) for answer in await asking)
        assert time.monotonic() - began < 1.0
        relay.open.set()
        await until(lambda: connection.server is not None)


async def test_while_there_is_no_server_requests_fail_without_waiting(unused_port):
    async with connected(f"redis://127.0.0.1:{unused_port}/0") as connection:
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(FeedsAway):
                await connection.block([("GET", "a")])
        assert time.monotonic() - began < 0.5


@pytest.fixture
def unused_port():
    with own_server() as server:
        gone = urlsplit(server.url)
    return gone.port


async def test_a_request_that_nobody_waits_for_any_more_leaves_the_others_their_replies(redis_url):
    async with connected(redis_url) as connection:
        gone = asyncio.create_task(connection.block([("SET", "a", 1)]))
        other = asyncio.create_task(connection.block([("GET", "b")]))
        await asyncio.sleep(0)
        gone.cancel()
        assert await other == [None]
        assert await connection.block([("GET", "a")]) == [b"1"]


async def test_the_url_names_user_password_and_database(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">a:b c", "~*", "+@all")
        try:
            address = urlsplit(redis_url)
            url = f"redis://reader:a%3Ab%20c@{address.hostname}:{address.port}/3"
            async with connected(url) as connection:
                assert await connection.block([("ACL", "WHOAMI"), ("SET", "here", 1)]) == [b"reader", b"OK"]
            assert client.dbsize() == 0
            async with connected(url.replace("a%3Ab", "wrong")) as connection:
                assert connection.server is None
                assert "WRONGPASS" in connection.last_error
        finally:
            client.execute_command("ACL", "DELUSER", "reader")


async def test_a_full_redis_answers_reads_all_the_same(redis_program):
    with own_server(program=redis_program) as server, redis.Redis.from_url(server.url) as client:
        client.rpush("list", "a", "b")
        async with connected(server.url) as connection:
            client.config_set("maxmemory", 1)
            assert await connection.block([("GET", "x"), ("LRANGE", "list", 0, -1)]) == [None, [b"a", b"b"]]


async def test_after_a_restart_the_epoch_is_learned_before_the_server_is_trusted(redis_program, tmp_path):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    with own_server(program=redis_program) as server:
        async with CachedFeeds(server.url, ledger.read_epoch) as feeds:
            await feeds.refill(ORG, 0, ledger.reader(ORG, 0))
            assert isinstance(await feeds.page(ORG, 0, place_page(1, 20)), Hit)

            away = asyncio.Event()

            async def no_epoch():
                away.set()
                raise PostgresAway("down")

            feeds.read_epoch = no_epoch
            await away.wait()
            assert isinstance(await feeds.page(ORG, 0, place_page(1, 20)), Hit)

            with redis.Redis.from_url(server.url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: feeds.multiplexer.server is None)
            assert await feeds.page(ORG, 0, place_page(1, 20)) == Miss(MissReason.AWAY)
            await until(lambda: "no epoch" in feeds.multiplexer.last_error)

            feeds.read_epoch = ledger.read_epoch
            await until(lambda: feeds.multiplexer.server is not None)
            assert isinstance(await feeds.page(ORG, 0, place_page(1, 20)), Hit)


async def test_a_paused_server_costs_a_reader_a_tenth_of_a_second_and_then_nothing(redis_program):
    ledger = FeedLedger()
    ledger.post(ORG, 5)
    with own_server(program=redis_program) as server:
        async with CachedFeeds(server.url, ledger.read_epoch) as feeds:
            await feeds.refill(ORG, 0, ledger.reader(ORG, 0))
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                for within_s in (gathered.REPLY_WITHIN_S + 0.3, 0.1):
                    began = time.monotonic()
                    assert await feeds.page(ORG, 0, place_page(1, 20)) == Miss(MissReason.AWAY)
                    assert time.monotonic() - began < within_s
                newest = await feeds.refill(ORG, 0, ledger.reader(ORG, 0))
                assert newest.total == 5
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            await until(lambda: feeds.multiplexer.server is not None)
            assert isinstance(await feeds.page(ORG, 0, place_page(1, 20)), Hit)
