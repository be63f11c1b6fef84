"""Verify compares every cached feed with the ledger: it finds every difference and gives no false alarm."""

import json
import time
from contextlib import closing
from threading import Thread

import psycopg
import pytest
import redis

from feeds.cached import format as cache_format
from feeds.cached import writer
from feeds.cached.epoch import KNOWN_WITHIN_S, read_epoch, renew_epoch
from feeds.cached.worker_connection import WorkerConnection
from feeds.page import count_feeds, feed_number
from tests.integration.command_line import run, run_json
from tests.integration.warm_feeds import FEEDS, KINDS, MOVEMENTS, NUMBERS, add, drain, warm
from worker.audit import feeds as feed_audit
from worker.audit.feeds import audit_feeds
from worker.settings import worker_settings


def test_filter_of_is_the_inverse_of_feed_number():
    numbers = {feed: feed_number(feed.kind, NUMBERS.get(feed.usage_kind)) for feed in FEEDS}

    assert list(numbers.values()) == list(range(count_feeds(KINDS)))


class Warm:
    """Two organisations with the same history. All of their feeds are cached; the tests damage those of `org_a`."""

    def __init__(self, environment, connection, client):
        self.environment = environment
        self.connection = connection
        self.client = client

    @property
    def key(self):
        """Return the key of the hash of org_a."""
        [key] = self.client.keys("feeds:*:{org_a}")
        return key

    def list_key(self, feed):
        return cache_format.list_key(self.key, feed)

    def findings(self, code=1):
        """Run verify, and return what it found without the organisation, which is always org_a."""
        found = run_json("verify", code=code)["findings"]
        assert all(finding["org_id"] == "org_a" for finding in found)
        return [(finding["rule"], finding["place"], finding["expected"], finding["found"]) for finding in found]


@pytest.fixture
def system(environment):
    for org_id in ("org_a", "org_b"):
        add(environment, org_id)
    drain(environment)
    warm(environment, "org_a", "org_b")
    with (
        psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection,
        redis.Redis.from_url(environment["REDIS_URL"]) as client,
    ):
        yield Warm(environment, connection, client)


def test_warm_feeds_have_no_difference_and_all_of_them_are_compared(system):
    found = run_json("verify")
    assert (found["findings"], found["cached_feeds"]) == ([], 2 * count_feeds(KINDS))
    assert run_json("verify", "org_a")["cached_feeds"] == count_feeds(KINDS)
    assert run("verify").stdout == "2 organisations, 10 movements, 2 grants, 24 cached feeds: no difference.\n"


def test_appended_items_are_compared_too(system):
    add(system.environment, "org_a", "-more")
    drain(system.environment)

    assert run_json("verify")["findings"] == []
    assert system.client.llen(system.list_key(0)) == 2 * MOVEMENTS


def item_of(element):
    """Return the item that an undamaged list element holds."""
    return cache_format.ITEM_PREFIX_BYTES + element.rpartition(b" ")[2]


def test_an_item_that_was_changed_and_sealed_again_is_found(system):
    key = system.list_key(1)
    item = item_of(system.client.lindex(key, 0)).replace(b'"credits":10', b'"credits":11')
    system.client.lset(key, 0, b"1 " + cache_format.seal_item(cache_format.seed(system.key), item))

    [(rule, place, expected, found)] = system.findings()

    assert (rule, place) == ("cached_line", "feed 1, ordinal 1")
    assert (json.loads(expected)["credits"], json.loads(found)["credits"]) == (10, 11)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda client, key: client.lpop(key), "4"),
        (lambda client, key: client.rpop(key), "torn items"),
        (lambda client, key: client.lrem(key, 1, client.lindex(key, 2)), "torn items"),
        (lambda client, key: client.lset(key, 2, b"nonsense"), "corrupt items"),
        (lambda client, key: client.lset(key, 2, client.lindex(key, 2)[:-1]), "corrupt items"),
        (lambda client, key: client.set(key, "x"), "corrupt items"),
    ],
    ids=["no oldest item", "no newest item", "a gap", "nonsense", "cut short", "not a list"],
)
def test_a_missing_or_damaged_item_is_found_although_no_reader_would_serve_it(system, damage, found):
    damage(system.client, system.list_key(0))

    [finding] = system.findings()

    assert (finding[0], finding[1], finding[3]) == ("cached_list", "feed 0", found)


def test_a_list_that_was_lost_completely_is_not_a_difference(system):
    system.client.delete(system.list_key(0))

    assert system.findings(code=0) == []


def test_a_damaged_count_is_found(system):
    system.client.hset(system.key, "0", b"5 00000000")

    assert system.findings() == [("cached_list", "feed 0", "valid items", "corrupt items")]


def test_a_count_above_the_ledgers_is_found_with_or_without_items_and_rebuild_ends_it(system):
    """This happens after Postgres was restored to an older state: the cache holds movements that Postgres has lost."""
    key = system.key
    item = item_of(system.client.lindex(system.list_key(0), 0))
    element = b"%d %s" % (MOVEMENTS + 1, cache_format.seal_item(cache_format.seed(key), item))
    system.client.rpush(system.list_key(0), element)
    system.client.hset(key, "0", cache_format.seal_count(key, 0, MOVEMENTS + 1))
    system.client.delete(system.list_key(2))
    system.client.hset(key, "2", cache_format.seal_count(key, 2, 99))

    assert system.findings() == [
        ("cached_count", "feed 0", "5 at most", "6"),
        ("cached_count", "feed 2", "3 at most", "99"),
    ]

    before = read_epoch(system.connection)
    begun = time.monotonic()
    renewed = run_json("rebuild")["epoch"]
    assert time.monotonic() - begun >= KNOWN_WITHIN_S
    assert renewed == str(read_epoch(system.connection)) != str(before)
    found = run_json("verify")
    assert (found["findings"], found["cached_feeds"]) == ([], 0)
    warm(system.environment, "org_a")
    assert run_json("verify")["cached_feeds"] == count_feeds(KINDS)


def lag(system):
    """Post events of org_a, and put its cached feeds back to their state before."""
    hash_, lists = system.client.dump(system.key), {n: system.client.dump(system.list_key(n)) for n in range(12)}
    key, list_keys = system.key, {number: system.list_key(number) for number in lists}
    add(system.environment, "org_a", "-more")
    drain(system.environment)
    system.client.restore(key, 600_000, hash_, replace=True)
    for number, list_ in lists.items():
        if list_ is not None:
            system.client.restore(list_keys[number], 600_000, list_, replace=True)


def test_a_count_that_stays_below_the_ledgers_is_found(system):
    lag(system)

    found = audit(system, within_s=0.3)

    assert {finding.rule for finding in found.findings} == {"cached_count"}
    assert ("org_a", "cached_count", "feed 0", "10 within 0.3 s", "5") in found.findings
    assert all(finding.org_id == "org_a" for finding in found.findings)


def audit(system, within_s):
    """Audit all cached feeds, with this much time to catch up."""
    with (
        psycopg.connect(system.environment["DATABASE_URL"], autocommit=True) as connection,
        closing(WorkerConnection(system.environment["REDIS_URL"])) as feeds_redis,
    ):
        return audit_feeds(connection, feeds_redis, NUMBERS, within_s=within_s)


@pytest.mark.parametrize("end", ["gone", "caught up", "rebuilt"])
def test_a_count_below_the_ledgers_is_not_a_difference_if_it_catches_up_or_disappears(system, end):
    lag(system)
    key = system.key
    audits = []
    auditing = Thread(target=lambda: audits.append(audit(system, within_s=20)))
    auditing.start()
    auditing.join(timeout=0.5)
    assert auditing.is_alive(), "it waits for a batch that is not published yet"

    if end == "rebuilt":
        renew_epoch(system.connection, read_epoch(system.connection))
    else:
        system.client.delete(key)
        if end == "caught up":
            warm(system.environment, "org_a")
    auditing.join(timeout=15)

    assert not auditing.is_alive()
    assert audits[0].findings == []


def test_feeds_of_another_epoch_are_ignored(system):
    system.client.hset(system.key, "0", b"5 00000000")
    renew_epoch(system.connection, read_epoch(system.connection))

    assert system.findings(code=0) == []


def test_without_the_feeds_redis_only_the_ledger_decides_and_standard_error_says_why(system, monkeypatch):
    monkeypatch.setenv("FEEDS_REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    worker_settings.cache_clear()

    result = run("verify")

    assert result.stdout.endswith("2 grants, no cached feed compared: no difference.\n")
    assert result.stderr.startswith("usage-feeds: The feeds' Redis at 127.0.0.1:1: ")
    assert result.stderr.endswith(": cached feeds were not compared.\n")
    assert "geheim" not in result.stderr
    assert run_json("verify")["cached_feeds"] is None


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_batch_published_just_before_or_after_the_cache_is_read_is_not_a_difference(system, monkeypatch, moment):
    batches = iter(range(100))

    def read_cached_and_post(*arguments):
        if moment == "before":
            post()
        cached_feeds = writer.read_cached(*arguments)
        if moment == "after":
            post()
        return cached_feeds

    def post():
        add(system.environment, "org_a", f"-{next(batches)}")
        drain(system.environment)

    monkeypatch.setattr(feed_audit, "read_cached", read_cached_and_post)

    assert system.findings(code=0) == []
    assert next(batches) > 0
