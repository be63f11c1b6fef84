"""Every cached feed is compared with the ledger: what is wrong is found, and nothing that is right is called so."""

import json
import time
from contextlib import closing
from threading import Thread

import psycopg
import pytest
import redis

from feeds.cached import format as proof
from feeds.cached import writer
from feeds.cached.worker_connection import WorkerConnection
from feeds.page import count_feeds, feed_number
from tests.integration.command_line import run, run_json
from tests.integration.warm_feeds import FEEDS, KINDS, LINES, NUMBERS, add, drain, warm
from worker.audit import feeds as feed_audit
from worker.audit.feeds import audit_feeds
from worker.settings import worker_settings


def test_the_filter_of_a_number_is_that_whose_number_it_is():
    numbers = {feed: feed_number(feed.kind, NUMBERS.get(feed.usage_kind)) for feed in FEEDS}

    assert list(numbers.values()) == list(range(count_feeds(KINDS)))


class Warm:
    """Two organisations with the same history, all of whose feeds are cached; those of `org_a` will be damaged."""

    def __init__(self, environment, connection, client):
        self.environment = environment
        self.connection = connection
        self.client = client

    @property
    def key(self):
        """The hash of org_a."""
        [key] = self.client.keys("feeds:*:{org_a}")
        return key

    def list_key(self, feed):
        return proof.list_key(self.key, feed)

    def findings(self, code=1):
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


def test_a_warm_system_is_clean_and_every_cached_feed_of_it_was_compared(system):
    found = run_json("verify")
    assert (found["findings"], found["cached_feeds"]) == ([], 2 * count_feeds(KINDS))
    assert run_json("verify", "org_a")["cached_feeds"] == count_feeds(KINDS)
    assert run("verify").stdout == "2 organisations, 10 movements, 2 grants, 24 cached feeds: no difference.\n"


def test_what_was_appended_is_compared_too(system):
    add(system.environment, "org_a", "-more")
    drain(system.environment)

    assert run_json("verify")["findings"] == []
    assert system.client.llen(system.list_key(0)) == 2 * LINES


def json_of(entry):
    """Return the JSON that is served of an undamaged entry."""
    return proof.HEAD_BYTES + entry.rpartition(b" ")[2]


def test_an_entry_that_was_changed_and_sealed_anew_is_found(system):
    key = system.list_key(1)
    json_ = json_of(system.client.lindex(key, 0)).replace(b'"credits":10', b'"credits":11')
    system.client.lset(key, 0, b"1 " + proof.seal_json(proof.seed(system.key), json_))

    [(rule, place, expected, found)] = system.findings()

    assert (rule, place) == ("cached_line", "feed 1, ordinal 1")
    assert (json.loads(expected)["credits"], json.loads(found)["credits"]) == (10, 11)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda client, key: client.lpop(key), "4"),
        (lambda client, key: client.rpop(key), "torn ones"),
        (lambda client, key: client.lrem(key, 1, client.lindex(key, 2)), "torn ones"),
        (lambda client, key: client.lset(key, 2, b"nonsense"), "corrupt ones"),
        (lambda client, key: client.lset(key, 2, client.lindex(key, 2)[:-1]), "corrupt ones"),
        (lambda client, key: client.set(key, "x"), "corrupt ones"),
    ],
    ids=["no oldest", "no newest", "a gap", "nonsense", "cut short", "no list"],
)
def test_a_line_that_is_missing_or_damaged_is_found_though_no_reader_would_see_it(system, damage, found):
    damage(system.client, system.list_key(0))

    [finding] = system.findings()

    assert (finding[0], finding[1], finding[3]) == ("cached_list", "feed 0", found)


def test_a_list_that_was_lost_whole_is_no_difference(system):
    system.client.delete(system.list_key(0))

    assert system.findings(code=0) == []


def test_a_damaged_count_is_found(system):
    system.client.hset(system.key, "0", b"5 00000000")

    assert system.findings() == [("cached_list", "feed 0", "entries that prove themselves", "corrupt ones")]


def test_a_count_above_the_ledgers_is_found_with_and_without_entries_and_rebuild_ends_it(system):
    """So it is after Postgres was restored to an older state: the cache knows lines that it has lost."""
    key = system.key
    json_ = json_of(system.client.lindex(system.list_key(0), 0))
    entry = b"%d %s" % (LINES + 1, proof.seal_json(proof.seed(key), json_))
    system.client.rpush(system.list_key(0), entry)
    system.client.hset(key, "0", proof.seal_count(key, 0, LINES + 1))
    system.client.delete(system.list_key(2))
    system.client.hset(key, "2", proof.seal_count(key, 2, 99))

    assert system.findings() == [
        ("cached_count", "feed 0", "5 at most", "6"),
        ("cached_count", "feed 2", "3 at most", "99"),
    ]

    before = writer.read_epoch(system.connection)
    begun = time.monotonic()
    renewed = run_json("rebuild")["epoch"]
    assert time.monotonic() - begun >= proof.EPOCH_EVERY_S
    assert renewed == str(writer.read_epoch(system.connection)) != str(before)
    found = run_json("verify")
    assert (found["findings"], found["cached_feeds"]) == ([], 0)
    warm(system.environment, "org_a")
    assert run_json("verify")["cached_feeds"] == count_feeds(KINDS)


def lag(system):
    """Let the feeds of org_a lack what was posted last."""
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
    with (
        psycopg.connect(system.environment["DATABASE_URL"], autocommit=True) as connection,
        closing(WorkerConnection(system.environment["REDIS_URL"])) as link,
    ):
        return audit_feeds(connection, link, NUMBERS, within_s=within_s)


@pytest.mark.parametrize("end", ["gone", "caught up", "rebuilt"])
def test_a_count_below_the_ledgers_is_no_difference_once_it_catches_up_or_is_gone(system, end):
    lag(system)
    key = system.key
    audits = []
    auditing = Thread(target=lambda: audits.append(audit(system, within_s=20)))
    auditing.start()
    auditing.join(timeout=0.5)
    assert auditing.is_alive(), "it waits for the batch that is on its way"

    if end == "rebuilt":
        writer.renew_epoch(system.connection, writer.read_epoch(system.connection))
    else:
        system.client.delete(key)
        if end == "caught up":
            warm(system.environment, "org_a")
    auditing.join(timeout=15)

    assert not auditing.is_alive()
    assert audits[0].findings == []


def test_feeds_of_another_epoch_are_nobodys(system):
    system.client.hset(system.key, "0", b"5 00000000")
    writer.renew_epoch(system.connection, writer.read_epoch(system.connection))

    assert system.findings(code=0) == []


def test_without_the_feeds_redis_the_ledger_decides_and_standard_error_says_why(system, monkeypatch):
    monkeypatch.setenv("FEEDS_REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    worker_settings.cache_clear()

    result = run("verify")

    assert result.stdout.endswith("2 grants, no cached feed compared: no difference.\n")
    assert result.stderr.startswith("usage-feeds: The feeds' Redis at 127.0.0.1:1: ")
    assert result.stderr.endswith(": cached feeds were not compared.\n")
    assert "geheim" not in result.stderr
    assert run_json("verify")["cached_feeds"] is None


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_batch_shown_just_before_or_after_the_cache_is_looked_at_is_no_difference(system, monkeypatch, moment):
    batches = iter(range(100))

    def look_in_the_middle(*asked):
        if moment == "before":
            post()
        looked = writer.look(*asked)
        if moment == "after":
            post()
        return looked

    def post():
        add(system.environment, "org_a", f"-{next(batches)}")
        drain(system.environment)

    monkeypatch.setattr(feed_audit, "look", look_in_the_middle)

    assert system.findings(code=0) == []
    assert next(batches) > 0
