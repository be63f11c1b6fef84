"""An endpoint whose Redis or Postgres hangs, is cut off or refuses connections: its answers, and how fast it recovers."""

import json
import time

import psycopg
import pytest
import redis

from feeds.keys import create_key
from tests.acceptance.relay import Relay
from tests.acceptance.test_serve import request
from tests.integration.endpoint_requests import MOVEMENTS
from tests.seed import MIXED, seed, seed_published

WITHIN_S = 2.0
RECOVERED_WITHIN_S = 5.0
TROUBLES = [("hang", "flow"), ("shut", "open")]
PAGE = b"/credits/usage"
UNCACHED = b"/credits/usage?kind=expire&limit=%d"


@pytest.fixture
def connection(environment):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", MOVEMENTS)
        yield connection


@pytest.fixture
def secret(connection):
    return create_key(connection, org_id="org_a")[1]


@pytest.fixture
def redis_relay(redis_url):
    with Relay(redis_url) as relay:
        yield relay


@pytest.fixture
def postgres_relay(database_url):
    with Relay(database_url) as relay:
        yield relay


@pytest.fixture
def base(processes, redis_relay, postgres_relay):
    """Give the URL of an endpoint that reaches both servers only through their relays."""
    return processes.endpoint({"DATABASE_URL": postgres_relay.database_url, "REDIS_URL": redis_relay.redis_url})


def answer(base, secret, target=PAGE):
    """Return the status and document of an answer, and assert that it came in time."""
    started = time.monotonic()
    status, _, body = request(base, secret, target)
    assert time.monotonic() - started < WITHIN_S
    return status, json.loads(body)


def total(base, secret, target=PAGE):
    status, page = answer(base, secret, target)
    assert status == 200, page
    return page["pages"]["total_items"]


def is_cached(relay, base, secret):
    """Tell whether a page was read through this relay to Redis."""
    before = relay.passed
    return answer(base, secret)[0] == 200 and relay.passed > before


@pytest.mark.parametrize(("fail", "mend"), TROUBLES)
def test_while_redis_is_away_pages_come_from_postgres_and_when_it_is_back_from_redis(
    base, secret, connection, redis_url, redis_relay, postgres_relay, wait_until, fail, mend
):
    assert total(base, secret) == len(MOVEMENTS)
    getattr(redis_relay, fail)()
    for number in range(1, 6):
        # Only the worker reaches Redis now. The endpoint must not serve what Redis holds before it has connected again.
        seed_published(connection, redis_url, "org_a", MIXED[:2])
        assert total(base, secret) == len(MOVEMENTS) + 2 * number
        assert total(base, secret, PAGE + b"?page=3&limit=7") == len(MOVEMENTS) + 2 * number
    getattr(redis_relay, mend)()

    wait_until(lambda: is_cached(redis_relay, base, secret), within_s=RECOVERED_WITHIN_S)
    seed_published(connection, redis_url, "org_a", MIXED[:2])
    assert total(base, secret) == len(MOVEMENTS) + 12
    postgres_relay.shut()
    assert total(base, secret) == len(MOVEMENTS) + 12


def test_connections_to_redis_that_are_cut_again_and_again_cost_no_wrong_page(
    base, secret, connection, redis_url, redis_relay
):
    for number in range(1, 20):
        seed_published(connection, redis_url, "org_a", MIXED[:1])
        redis_relay.cut()
        assert total(base, secret) == len(MOVEMENTS) + number


@pytest.mark.parametrize(("fail", "mend"), TROUBLES)
def test_while_postgres_is_away_cached_pages_are_served_and_other_requests_fail_in_time(
    base, secret, connection, redis_url, postgres_relay, wait_until, fail, mend
):
    _, page = answer(base, secret)
    _, other = answer(base, secret, PAGE + b"?page=2")
    _, unused = create_key(connection, org_id="org_a")
    getattr(postgres_relay, fail)()
    for number in range(1, 4):
        assert answer(base, secret) == (200, page)
        assert answer(base, secret, PAGE + b"?page=2") == (200, other)
        assert answer(base, secret, PAGE + b"?limit=%d&page=3" % number)[0] == 200
        for key, target in ((secret, UNCACHED % number), (unused, PAGE)):
            status, error = answer(base, key, target)
            assert (status, error["code"]) == (500, "credit.usage.failed")
    assert answer(base, None)[0] == 401
    getattr(postgres_relay, mend)()

    wait_until(lambda: answer(base, secret, UNCACHED % 9)[0] == 200, within_s=RECOVERED_WITHIN_S)
    wait_until(lambda: answer(base, unused)[0] == 200, within_s=RECOVERED_WITHIN_S)
    seed_published(connection, redis_url, "org_a", MIXED[:1])
    assert total(base, secret) == len(MOVEMENTS) + 1


def test_while_both_are_away_requests_fail_in_time_and_when_both_are_back_pages_are_cached_again(
    base, secret, connection, redis_url, redis_relay, postgres_relay, wait_until
):
    assert total(base, secret) == len(MOVEMENTS)
    redis_relay.hang()
    postgres_relay.shut()
    for _ in range(4):
        status, error = answer(base, secret)
        assert (status, error["code"]) == (500, "credit.usage.failed")
        assert answer(base, None)[0] == 401
    seed_published(connection, redis_url, "org_a", MIXED[:1])
    postgres_relay.open()
    redis_relay.flow()

    began = time.monotonic()
    wait_until(lambda: answer(base, secret)[0] == 200, within_s=RECOVERED_WITHIN_S)
    assert total(base, secret) == len(MOVEMENTS) + 1
    left_s = RECOVERED_WITHIN_S - (time.monotonic() - began)
    wait_until(lambda: is_cached(redis_relay, base, secret), within_s=left_s)


def test_a_redis_that_was_flushed_is_refilled_by_reads(
    base, secret, connection, redis_url, redis_relay, postgres_relay, wait_until
):
    assert total(base, secret) == len(MOVEMENTS)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        seed_published(connection, redis_url, "org_a", MIXED[:3])
        assert total(base, secret) == len(MOVEMENTS) + 3
        assert client.keys("feeds:*")
    seed_published(connection, redis_url, "org_a", MIXED[:3])
    postgres_relay.shut()
    assert total(base, secret) == len(MOVEMENTS) + 6
