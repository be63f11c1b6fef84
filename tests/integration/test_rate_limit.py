"""A key that has a rate may ask so often, whichever process it asks; one that has none is not counted."""

import asyncio
import time
from contextlib import asynccontextmanager
from unittest.mock import patch
from uuid import uuid4

import pytest
import redis

from feeds import counters as tally
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.protocol import RedisProtocol
from feeds.endpoint.errors import RateLimited
from feeds.endpoint.rate_limit import RateLimiter
from feeds.keys import create_key
from tests.integration.command_line import run, run_json
from tests.integration.endpoint_asks import PATH, assert_refused, headers_of
from tests.integration.feed_ledger import own_server

NOWHERE = "redis://127.0.0.1:1/0"


@asynccontextmanager
async def limits_of(*urls):
    """Give one process's limits for each address."""
    connections = [Multiplexer(url) for url in urls]
    for connection in connections:
        await connection.start()
    try:
        yield [RateLimiter(connection) for connection in connections]
    finally:
        for connection in connections:
            await connection.close()


async def take_all(limits, key_id, rate, tries):
    """Return how many of so many tries got a turn."""
    turns = 0
    for number in range(tries):
        try:
            await limits[number % len(limits)].take(key_id, rate)
        except RateLimited:
            continue
        turns += 1
    return turns


async def take_in_a_row(limits, key_id, rate):
    """Return how many turns a key gets until it is refused for the first time."""
    for turns in range(10_000):
        try:
            await limits.take(key_id, rate)
        except RateLimited:
            return turns
    raise AssertionError("never refused")


@pytest.fixture
def writes():
    """Give the list of what goes to Redis, a write each; the connection's own looks are left out."""
    seen, flush = [], RedisProtocol.flush

    def watched(wire):
        sent = b"".join(wire.unsent)
        if b"INFO" not in sent:
            seen.append(sent)
        flush(wire)

    with patch.object(RedisProtocol, "flush", watched):
        yield seen


def test_over_its_rate_a_key_is_refused_in_the_envelope_and_told_when_to_come_again(client, seeded, bearer):
    _, secret = create_key(seeded, org_id="org_a", rate=3)

    began = time.monotonic()
    answers = [client.get(PATH, headers=headers_of(secret)) for _ in range(12)]
    took = time.monotonic() - began

    refused = [answer for answer in answers if answer.status_code != 200]
    assert 12 - 3 * (took + 1) - 1 <= len(refused) <= 9
    for answer in refused:
        assert_refused(answer, 429, "rate_limited")
        assert answer.headers["retry-after"] == "1"
    assert client.get(PATH, headers=bearer).status_code == 200


def test_a_key_without_a_rate_costs_nothing_and_one_with_a_rate_no_second_round_trip(
    client, seeded, bearer, writes, redis_url
):
    _, limited = create_key(seeded, org_id="org_a", rate=100)

    def written(headers, page):
        answer = client.get(PATH, headers=headers, params={"page": page})
        assert answer.status_code == 200
        writes.clear()
        assert client.get(PATH, headers=headers, params={"page": page, "limit": 19}).status_code == 200
        return list(writes)

    [free] = written(bearer, 1)
    assert b"limits:" not in free
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys("limits:*") == []
    [one] = written(headers_of(limited), 2)
    assert b"limits:" in one
    assert b"LRANGE" in one


def test_turns_come_back_with_time_and_are_stored_for_a_second(redis_url):
    async def ask():
        async with limits_of(redis_url) as limits:
            key_id = uuid4()
            began = time.monotonic()
            turns = await take_all(limits, key_id, 20, 200)
            assert 20 <= turns <= 20 * (time.monotonic() - began) + 21
            await take_in_a_row(limits[0], key_id, 20)
            await asyncio.sleep(0.06)  # a turn and a bit
            await limits[0].take(key_id, 20)

    asyncio.run(ask())


def test_all_processes_share_one_bucket(redis_url):
    async def ask():
        async with limits_of(redis_url, redis_url, redis_url) as limits:
            began = time.monotonic()
            turns = await take_all(limits, uuid4(), 10, 300)
            return turns, time.monotonic() - began

    turns, took = asyncio.run(ask())
    assert 10 <= turns <= 10 * (took + 1) + 1


def test_a_refused_key_is_refused_again_without_asking_redis(redis_url, writes):
    async def ask():
        async with limits_of(redis_url) as limits:
            key_id = uuid4()
            await limits[0].take(key_id, 1)
            with pytest.raises(RateLimited):
                await limits[0].take(key_id, 1)
            writes.clear()
            for _ in range(100):
                with pytest.raises(RateLimited):
                    await limits[0].take(key_id, 1)

    kept = tally.limits["kept"]
    asyncio.run(ask())
    assert (writes, tally.limits["kept"] - kept) == ([], 100)


def test_without_redis_each_process_counts_for_itself():
    async def ask():
        async with limits_of(NOWHERE) as limits:
            began = time.monotonic()
            turns = await take_all(limits, uuid4(), 10, 200)
            return turns, time.monotonic() - began

    turns, took = asyncio.run(ask())
    assert 10 <= turns <= 10 * (took + 1) + 1


def test_the_bucket_of_lua_and_that_of_a_process_agree(redis_program, tmp_path):
    """Both refuse the same try of the same burst, whatever the rate, on either server."""

    async def ask(url):
        async with limits_of(url, NOWHERE) as (shared, own):
            for rate in (1, 2, 7, 50):
                key_id, firsts = uuid4(), []
                for limits in (shared, own):
                    firsts.append(await take_in_a_row(limits, key_id, rate))  # noqa: PERF401
                assert firsts[0] == pytest.approx(firsts[1], abs=2)
                assert all(turns >= rate for turns in firsts)

    with own_server(tmp_path, redis_program) as server:
        asyncio.run(ask(server.url))


def test_a_full_redis_a_strange_bucket_and_a_clock_set_back_lock_nobody_out_for_long(redis_program, tmp_path):
    async def ask(url, client):
        async with limits_of(url) as [limits]:
            key_id = uuid4()
            bucket = f"limits:{{{key_id.hex}}}"
            client.set(bucket, "nonsense")
            await limits.take(key_id, 5)
            seconds, _ = client.time()
            client.set(bucket, (seconds + 3600) * 10**6)
            with pytest.raises(RateLimited) as refused:
                await limits.take(key_id, 5)
            assert refused.value.headers == ((b"retry-after", b"1"),)
            client.delete(bucket)
            client.rpush(bucket, "another type")
            await limits.take(uuid4(), 5)
            other = uuid4()
            client.config_set("maxmemory", 1)
            assert 5 <= await take_all([limits], other, 5, 30) <= 7
            client.config_set("maxmemory", 0)

    with own_server(tmp_path, redis_program) as server, redis.Redis.from_url(server.url) as client:
        asyncio.run(ask(server.url, client))


def test_a_bucket_is_forgotten_once_it_is_full(redis_url):
    async def ask():
        async with limits_of(redis_url) as [limits]:
            await limits.take(uuid4(), 10)

    asyncio.run(ask())
    with redis.Redis.from_url(redis_url) as client:
        [bucket] = client.keys("limits:*")
        assert 0 < client.pttl(bucket) <= 100


def test_the_command_sets_a_keys_rate_and_lists_it(environment):
    assert ", 5 requests a second." in run("keys", "create", "--org", "org_a", "--rate", "5").stdout
    assert " a second" not in run("keys", "create", "--org", "org_a").stdout

    assert [key["rate"] for key in run_json("keys", "list")["keys"]] == [5, None]
    for rate in ("0", "100001", "1.5"):
        assert "--rate" in run("keys", "create", "--org", "org_a", "--rate", rate, code=2).stderr


def test_a_key_that_floods_costs_neither_a_round_trip_nor_a_page(client, seeded, writes):
    _, secret = create_key(seeded, org_id="org_a", rate=1)
    for _ in range(5):
        client.get(PATH, headers=headers_of(secret))
    before, reads = len(writes), sum(tally.misses.values()) + sum(tally.hits.values())
    answers = [client.get(f"{PATH}?page={page}", headers=headers_of(secret)).status_code for page in range(1, 101)]

    assert set(answers) <= {200, 429}
    let_through = answers.count(200)
    assert let_through <= 3
    assert sum(tally.misses.values()) + sum(tally.hits.values()) - reads <= 2 * let_through + 1
    assert len(writes) - before <= 4 * let_through + 2
