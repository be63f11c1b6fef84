"""A key with a rate may make so many requests a second, over all processes. A key without a rate is not counted."""

import asyncio
import time
from contextlib import asynccontextmanager
from unittest.mock import patch
from uuid import uuid4

import pytest
import redis

from feeds import counters
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.protocol import RedisProtocol
from feeds.endpoint.errors import RateLimited
from feeds.endpoint.rate_limit import RateLimiter
from feeds.keys import create_key
from tests.integration.command_line import run, run_json
from tests.integration.endpoint_requests import PATH, assert_refused, headers_of
from tests.integration.feed_ledger import own_server

NOWHERE = "redis://127.0.0.1:1/0"


@asynccontextmanager
async def limiters_at(*urls):
    """Give one rate limiter for each address, as if each were another process."""
    connections = [Multiplexer(url) for url in urls]
    for connection in connections:
        await connection.start()
    try:
        yield [RateLimiter(connection) for connection in connections]
    finally:
        for connection in connections:
            await connection.close()


async def count_tokens(limiters, key_id, rate, tries):
    """Return how many of so many tries got a token, one limiter after the other."""
    tokens = 0
    for number in range(tries):
        try:
            await limiters[number % len(limiters)].take(key_id, rate)
        except RateLimited:
            continue
        tokens += 1
    return tokens


async def take_until_refused(limiter, key_id, rate):
    """Return how many tokens a key gets before it is refused for the first time."""
    for tokens in range(10_000):
        try:
            await limiter.take(key_id, rate)
        except RateLimited:
            return tokens
    raise AssertionError("never refused")


@pytest.fixture
def writes():
    """Give the list of what is written to Redis. What the connection sends to identify the server is left out."""
    seen, flush = [], RedisProtocol.flush

    def watched(connection):
        sent = b"".join(connection.unsent)
        if b"INFO" not in sent:
            seen.append(sent)
        flush(connection)

    with patch.object(RedisProtocol, "flush", watched):
        yield seen


def test_a_key_over_its_rate_gets_429_in_the_envelope_with_retry_after(client, seeded, bearer):
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


def test_a_rate_costs_no_second_round_trip_and_a_key_without_one_costs_nothing(
    client, seeded, bearer, writes, redis_url
):
    _, limited = create_key(seeded, org_id="org_a", rate=100)

    def written(headers, page):
        answer = client.get(PATH, headers=headers, params={"page": page})
        assert answer.status_code == 200
        writes.clear()
        assert client.get(PATH, headers=headers, params={"page": page, "limit": 19}).status_code == 200
        return list(writes)

    [unlimited_write] = written(bearer, 1)
    assert b"limits:" not in unlimited_write
    with redis.Redis.from_url(redis_url) as server:
        assert server.keys("limits:*") == []
    [limited_write] = written(headers_of(limited), 2)
    assert b"limits:" in limited_write
    assert b"LRANGE" in limited_write


def test_a_bucket_refills_with_time_and_holds_the_tokens_of_one_second(redis_url):
    async def take():
        async with limiters_at(redis_url) as [limiter]:
            key_id = uuid4()
            began = time.monotonic()
            tokens = await count_tokens([limiter], key_id, 20, 200)
            assert 20 <= tokens <= 20 * (time.monotonic() - began) + 21
            await take_until_refused(limiter, key_id, 20)
            await asyncio.sleep(0.06)  # a little longer than one token takes
            await limiter.take(key_id, 20)

    asyncio.run(take())


def test_all_processes_share_one_bucket(redis_url):
    async def take():
        async with limiters_at(redis_url, redis_url, redis_url) as limiters:
            began = time.monotonic()
            tokens = await count_tokens(limiters, uuid4(), 10, 300)
            return tokens, time.monotonic() - began

    tokens, took = asyncio.run(take())
    assert 10 <= tokens <= 10 * (took + 1) + 1


def test_a_refused_key_is_refused_again_without_a_command_to_redis(redis_url, writes):
    async def take():
        async with limiters_at(redis_url) as [limiter]:
            key_id = uuid4()
            await limiter.take(key_id, 1)
            with pytest.raises(RateLimited):
                await limiter.take(key_id, 1)
            writes.clear()
            for _ in range(100):
                with pytest.raises(RateLimited):
                    await limiter.take(key_id, 1)

    kept = counters.limits["kept"]
    asyncio.run(take())
    assert (writes, counters.limits["kept"] - kept) == ([], 100)


def test_without_redis_each_process_uses_a_bucket_of_its_own():
    async def take():
        async with limiters_at(NOWHERE) as limiters:
            began = time.monotonic()
            tokens = await count_tokens(limiters, uuid4(), 10, 200)
            return tokens, time.monotonic() - began

    tokens, took = asyncio.run(take())
    assert 10 <= tokens <= 10 * (took + 1) + 1


def test_the_buckets_of_redis_and_of_a_process_refuse_the_same_request_of_a_burst(redis_program, tmp_path):
    async def take(url):
        async with limiters_at(url, NOWHERE) as (shared, own):
            for rate in (1, 2, 7, 50):
                key_id = uuid4()
                tokens = [await take_until_refused(limiter, key_id, rate) for limiter in (shared, own)]
                assert tokens[0] == pytest.approx(tokens[1], abs=2)
                assert all(number >= rate for number in tokens)

    with own_server(tmp_path, redis_program) as server:
        asyncio.run(take(server.url))


def test_a_full_redis_a_damaged_bucket_or_a_clock_set_back_refuses_no_key_for_long(redis_program, tmp_path):
    async def take(url, client):
        async with limiters_at(url) as [limiter]:
            key_id = uuid4()
            bucket = f"limits:{{{key_id.hex}}}"
            client.set(bucket, "nonsense")
            await limiter.take(key_id, 5)
            seconds, _ = client.time()
            client.set(bucket, (seconds + 3600) * 10**6)
            with pytest.raises(RateLimited) as refused:
                await limiter.take(key_id, 5)
            assert refused.value.headers == ((b"retry-after", b"1"),)
            client.delete(bucket)
            client.rpush(bucket, "another type")
            await limiter.take(uuid4(), 5)
            other = uuid4()
            client.config_set("maxmemory", 1)
            assert 5 <= await count_tokens([limiter], other, 5, 30) <= 7
            client.config_set("maxmemory", 0)

    with own_server(tmp_path, redis_program) as server, redis.Redis.from_url(server.url) as client:
        asyncio.run(take(server.url, client))


def test_a_full_bucket_expires(redis_url):
    async def take():
        async with limiters_at(redis_url) as [limiter]:
            await limiter.take(uuid4(), 10)

    asyncio.run(take())
    with redis.Redis.from_url(redis_url) as client:
        [bucket] = client.keys("limits:*")
        assert 0 < client.pttl(bucket) <= 100


def test_keys_create_sets_a_rate_and_keys_list_prints_it(environment):
    assert ", 5 requests a second." in run("keys", "create", "--org", "org_a", "--rate", "5").stdout
    assert " a second" not in run("keys", "create", "--org", "org_a").stdout

    assert [key["rate"] for key in run_json("keys", "list")["keys"]] == [5, None]
    for rate in ("0", "100001", "1.5"):
        assert "--rate" in run("keys", "create", "--org", "org_a", "--rate", rate, code=2).stderr


def test_refused_requests_cost_neither_a_round_trip_nor_a_page(client, seeded, writes):
    _, secret = create_key(seeded, org_id="org_a", rate=1)
    for _ in range(5):
        client.get(PATH, headers=headers_of(secret))
    before, reads = len(writes), sum(counters.misses.values()) + sum(counters.hits.values())
    answers = [client.get(f"{PATH}?page={page}", headers=headers_of(secret)).status_code for page in range(1, 101)]

    assert set(answers) <= {200, 429}
    allowed = answers.count(200)
    assert allowed <= 3
    assert sum(counters.misses.values()) + sum(counters.hits.values()) - reads <= 2 * allowed + 1
    assert len(writes) - before <= 4 * allowed + 2
