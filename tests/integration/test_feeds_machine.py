"""In any order of posting, loss, damage and reading, every page is the one that the model gives."""

from datetime import UTC, datetime, timedelta
from itertools import count, cycle

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from starlette.testclient import TestClient

from feeds.cached.worker_connection import WorkerConnection
from feeds.cached.writer import publish
from feeds.endpoint import app
from feeds.keys import create_key
from feeds.schema import check_ledger
from tests.conftest import clear_settings
from tests.integration.endpoint_requests import PATH, headers_of
from tests.integration.feed_world import FILTERS, Ledger, PageRead
from worker.intake import batch
from worker.intake.backlog import read_backlogs
from worker.intake.batch import Intake, Outcome, take_batch
from worker.intake.streams import add, connect, place
from worker.ledger import read, write
from worker.settings import WorkerSettings

STARTED_AT = datetime(2024, 1, 1, tzinfo=UTC)
"""Long before the time of Redis's clock, so that no default `occurred_at` depends on it."""
numbers = count(1)
orgs = st.integers(0, 1)
grant_refs = st.sampled_from([f"grant_{n}" for n in range(6)])
usage_refs = st.sampled_from([f"usage_{n}" for n in range(25)])
hours = st.one_of(st.none(), st.integers(-3, 4))
picks = st.integers(0, 2**16)
ends = st.sampled_from([(), (), (False,), (True,), (True, False), (True, True, False)])
"""Whether each drain that follows an event dies in the middle of its work; no drain may follow either."""
limits = st.sampled_from([1, 3, 20, 100])


class Died(Exception):  # noqa: N818 -- an end, not a mistake
    """The drain's process has died before it could publish."""


class World:
    """The servers, a drain whose clock the test sets, and the endpoint, which runs in this process."""

    def __init__(self, environment, client, connection):
        self.client, self.connection = client, connection
        self.feeds_redis = WorkerConnection(environment["FEEDS_REDIS_URL"])
        self.cache = redis.Redis.from_url(environment["FEEDS_REDIS_URL"])
        ledger = check_ledger(connection, WorkerSettings())
        self.intake = Intake(connection, connect(environment["REDIS_URL"]), ledger, self.publish, lambda: None)
        self.dies = False

    def publish(self, connection, posted, is_repeat):
        if self.dies:
            raise Died
        publish(self.feeds_redis, connection, posted.movements, posted.org_ids if is_repeat else (), posted.revisions)

    def set_clock(self, now):
        self.connection.execute("SELECT set_config('clock.now', %s, false)", [now.isoformat()])

    def drain(self):
        while waiting := [backlog.shard for backlog in read_backlogs(self.intake.streams, range(8)) if backlog.length]:
            assert take_batch(self.intake, waiting) is Outcome.POSTED

    def close(self):
        self.feeds_redis.close()
        self.cache.close()
        self.intake.streams.close()


@pytest.fixture
def world(environment, redis_url, monkeypatch):
    feeds_url = f"{redis_url.rpartition('/')[0]}/1"  # a database of their own, so that a flush spares the streams
    monkeypatch.setenv("FEEDS_REDIS_URL", feeds_url)
    for queries in (batch.SQL, read.SQL, write.SQL):
        for name, query in queries.items():
            own_clock = query.replace(b"clock_timestamp()", b"current_setting('clock.now')::timestamptz")
            monkeypatch.setitem(queries, name, own_clock)
    clear_settings()
    with (
        psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection,
        TestClient(app) as client,
    ):
        world = World({**environment, "FEEDS_REDIS_URL": feeds_url}, client, connection)
        yield world
        world.close()


class Machine(RuleBasedStateMachine):
    """Grants, usages, drains that may die, a cache that is lost or damaged, and readers."""

    world: World
    pages_read = Bundle("pages_read")

    @initialize()
    def start(self):
        number = next(numbers)
        self.now = STARTED_AT + timedelta(days=number)
        self.died_at = None
        self.ledgers = [Ledger(f"org_{number}_{letter}") for letter in "ab"]
        self.keys = [headers_of(create_key(self.world.connection, org_id=ledger.org_id)[1]) for ledger in self.ledgers]
        self.answers = {}
        self.turns = cycle([(org, feed) for feed in FILTERS for org in (0, 1)])
        self.world.set_clock(self.now)
        self.world.cache.flushdb()

    def add(self, org, *events):
        ledger = self.ledgers[org]
        events = [{"org_id": ledger.org_id, **event} for event in events]
        add(self.world.intake.streams, [place(event, 8) for event in events])
        for event in events:
            ledger.add(event)

    def at(self, offset_h):
        return None if offset_h is None else (self.now + timedelta(hours=offset_h)).isoformat()

    @rule(
        then=ends,
        org=orgs,
        ref=grant_refs,
        credits_=st.integers(1, 60),
        priority=st.integers(0, 2),
        start_h=hours,
        lasts_h=hours,
    )
    def grant(self, org, ref, credits_, priority, start_h, lasts_h, then):
        end_h = None if lasts_h is None else (start_h or 0) + abs(lasts_h) + 1
        fields = {
            "effective_at": self.at(start_h),
            "expires_at": self.at(end_h),
            "source": "plan",
            "priority": priority,
        }
        self.add(org, {"type": "grant", "grant_ref": ref, "credits": credits_, **fields})
        self.drain_as(then)

    @rule(
        then=ends,
        org=orgs,
        ref=usage_refs,
        kind=st.sampled_from(["ai_usage", "tm_usage"]),
        credits_=st.integers(0, 30),
        at=hours,
    )
    def usage(self, org, ref, kind, credits_, at, then):
        event = {"type": "usage", "usage_ref": ref, "usage_kind": kind, "credits": credits_, "occurred_at": self.at(at)}
        self.add(org, event)
        self.drain_as(then)

    @rule(then=ends, org=orgs, many=st.sampled_from([30, 130]))
    def burst(self, org, many, then):
        self.add(
            org,
            *(
                {"type": "usage", "usage_ref": f"burst_{next(numbers)}", "usage_kind": "ai_usage", "credits": 1 + n % 2}
                for n in range(many)
            ),
        )
        if sum(len(ledger.waiting) for ledger in self.ledgers) > 300:
            self.drain(dies=False)
        self.drain_as(then)

    @rule(then=ends, org=orgs, ref=grant_refs)
    def revoke(self, org, ref, then):
        self.add(org, {"type": "revoke", "grant_ref": ref})
        self.drain_as(then)

    @rule(then=ends, org=orgs, count=st.integers(1, 3))
    def settle(self, org, count, then):
        self.add(org, *[{"type": "settle"}] * count)
        self.drain_as(then)

    @rule(minutes=st.sampled_from([-90, -1, 1, 30, 60, 200]))
    def step_the_clock(self, minutes):
        self.now += timedelta(minutes=minutes)
        self.world.set_clock(self.now)

    @rule(then=ends)
    def drain_as(self, then):
        for dies in then:
            self.drain(dies)
            self.first_pages_are_right()

    def drain(self, dies):
        if self.died_at is not None and self.died_at <= self.now < self.died_at + timedelta(seconds=2):
            self.step_the_clock(1)  # for one second, a drain leaves leftovers to the drain that posted them
        if not any(ledger.waiting for ledger in self.ledgers):
            return
        self.world.dies = dies
        if dies:
            with pytest.raises(Died):
                self.world.drain()
        else:
            self.world.drain()
        self.died_at = self.now if dies else None
        for ledger in self.ledgers:
            ledger.post(self.now, is_published=not dies)

    @rule(pick=picks, how=st.sampled_from(["DEL", "EXPIRE"]))
    def lose_a_key(self, pick, how):
        if key := self.choose(pick, self.world.cache.scan_iter()):
            self.world.cache.execute_command(how, key, *([0] if how == "EXPIRE" else []))

    @rule(
        pick=picks,
        change=st.sampled_from(["set", "damage", "move", "lpop", "rpop", "rpush"]),
        damage=st.binary(max_size=12),
    )
    def corrupt_a_key(self, pick, change, damage):
        cache, key = self.world.cache, self.choose(pick, self.world.cache.scan_iter())
        if not key:
            return
        if change == "set":
            cache.set(key, damage)
        elif cache.type(key) == b"hash":
            other = self.choose(pick + 1, cache.hvals(key))
            cache.hset(key, self.choose(pick, cache.hkeys(key)), damage if change == "damage" else other)
        elif cache.type(key) == b"list":
            elements = cache.lrange(key, 0, -1)
            match change:
                case "damage":
                    cache.lset(key, pick % len(elements), damage)
                case "move":
                    cache.lset(key, pick % len(elements), elements[pick // 7 % len(elements)])
                case "rpush":
                    cache.rpush(key, elements[pick % len(elements)])
                case _:
                    cache.execute_command(change, key)

    @staticmethod
    def choose(pick, among):
        """Return one of these. What Hypothesis draws must not depend on the servers, so it draws a number."""
        ordered = sorted(among)
        return ordered[pick % len(ordered)] if ordered else None

    @rule(how=st.sampled_from(["FLUSHDB", "SCRIPT FLUSH"]))
    def flush(self, how):
        self.world.cache.execute_command(*how.split())

    @rule()
    def cut_every_connection(self):
        self.world.cache.client_kill_filter(_type="normal", skipme=True)
        self.world.intake.streams.connection_pool.disconnect()

    @rule()
    def rebuild(self):
        self.world.connection.execute("UPDATE ledger SET epoch = gen_random_uuid()")

    @rule(target=pages_read, org=orgs, feed=st.sampled_from(FILTERS), limit=limits, page=st.integers(1, 12))
    def read(self, org, feed, limit, page):
        return self.read_numbered(org, feed, limit, page)

    def read_numbered(self, org, feed, limit, page):
        kind, usage_kind = feed
        params = {"kind": kind and kind.value, "usage_kind": usage_kind, "limit": limit, "page": page}
        answer = self.get(org, {name: value for name, value in params.items() if value})
        newest = max(answer["pages"]["total_items"] - (page - 1) * limit, 0)
        read = PageRead(org, feed, limit, newest, max(newest - limit, 0), answer["pages"])
        assert answer["pages"]["page"] == page
        self.ledgers[org].check(answer, read, None)
        return read

    @rule(target=pages_read, page=pages_read, way=st.sampled_from(["next", "prev", "same"]), limit=limits)
    def follow(self, page, way, limit):
        cursor = page.pages["cursor" if way == "same" else f"{way}_cursor"]
        if cursor is None:
            return multiple()
        limit = page.limit if way == "same" else limit
        answer = self.get(page.org, {"cursor": cursor, "limit": limit})
        newest, below = page.newest, page.below
        if way == "next":
            newest, below = below, max(below - limit, 0)
        elif way == "prev":
            newest, below = min(newest + limit, answer["pages"]["total_items"]), newest
        read = PageRead(page.org, page.feed, limit, newest, below, answer["pages"])
        self.ledgers[page.org].check(answer, read, page.pages["direction"] if way == "same" else way)
        return read

    def get(self, org, params):
        """Return a page: the one of the previous answer, if the endpoint answers 304."""
        request = (org, *params.items())
        etag, page = self.answers.get(request, ("", None))
        answer = self.world.client.get(PATH, params=params, headers=self.keys[org] | {"If-None-Match": etag})
        assert answer.status_code in {200, 304}, answer.text
        if answer.status_code == 200:
            page = answer.json()
            self.answers[request] = (answer.headers["etag"], page)
        assert page is not None
        return page

    @invariant()
    def first_pages_are_right(self):
        for org, feed in ((0, FILTERS[0]), (1, FILTERS[0]), next(self.turns)):
            self.read_numbered(org, feed, 20, 1)

    def teardown(self):
        if hasattr(self, "ledgers"):
            self.drain(dies=False)
            for _ in range(2 * len(FILTERS)):
                self.first_pages_are_right()


@pytest.mark.timeout(180)
def test_every_page_is_the_one_that_the_model_gives(world):
    """It fails if a reader does not check ordinals, or if a drain does not drop the feeds of what it repeats."""
    machine = type("MachineOfThisWorld", (Machine,), {"world": world})
    checks = settings(
        max_examples=20,
        stateful_step_count=25,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # to shrink a failure would take minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=checks)
