"""How do our own workers post events, and how are ledgers filled for that?"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice

import psycopg
from redis import Redis
from typeid import TypeID
from uuid_utils.compat import uuid7

from feeds.cached.epoch import fetch_epoch
from feeds.cached.reader import CachedFeeds
from feeds.movement import Kind
from feeds.page import Filter, place_page
from feeds.postgres import Postgres
from feeds.read_through import Feeds, read
from feeds.schema import check_ledger
from feeds.single_flight import SingleFlight
from feeds.store import Store
from tests.bench.servers import WORKER_PROCESSES, Servers
from tests.servers import CHECKOUT
from worker.intake.streams import shard_of, stream_of
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries
from worker.local.children import Process
from worker.settings import WorkerSettings

SHARDS = 8
ENOUGH_CREDITS = 10**12
POSTED_AT_ONCE = 2000
ADDED_AT_ONCE = 2000
WARM_FEEDS = (
    Filter(),
    Filter(kind=Kind.CONSUME),
    Filter(usage_kind="ai_usage"),
    Filter(kind=Kind.CONSUME, usage_kind="ai_usage"),
)
"""Every feed that the consume movement of an `ai_usage` belongs to."""


class UsageFeeds:
    """Single events on streams. A Celery worker with two processes posts them and publishes them to the cached feeds.

    Every organisation has a grant with enough credits. `warm`: all feeds of all organisations are cached.
    """

    def __init__(self, name: str, organisations: int, events: int, *, warm: bool = False) -> None:
        self.name = name
        self.organisations = organisations
        self.events = events
        self.warm = warm

    def fill(self, servers: Servers, events: int) -> None:
        """Add the events to the streams, and cache the feeds if they are to be warm."""
        if self.warm:
            asyncio.run(cache_feeds(servers, list(organisations(self.organisations))))
        with Redis.from_url(servers.redis_url) as redis:
            add(redis, usages(self.organisations, events))

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        """Start a worker and the schedule, as the README says."""
        return start_worker(servers)

    def count_left(self, servers: Servers) -> int:
        """Return how many events wait. An event waits until it is committed and published."""
        return count_waiting(servers)

    def check(self, servers: Servers, events: int) -> None:
        """Check that the ledger holds every usage, and verify ledger and feeds."""
        with psycopg.connect(servers.database_url) as connection:
            [(found,)] = connection.execute("SELECT count(*) FROM movements WHERE usage_number IS NOT NULL").fetchall()
        assert found == events, f"{found} of {events} usages are in the ledger"
        verify(servers)


def count_waiting(servers: Servers) -> int:
    """Return how many entries are on the streams."""
    with Redis.from_url(servers.redis_url) as redis, redis.pipeline(transaction=False) as pipeline:
        for shard in range(SHARDS):
            pipeline.xlen(stream_of(shard))
        return sum(pipeline.execute())


def start_worker(servers: Servers, processes: int = WORKER_PROCESSES) -> list[Process]:
    """Start a Celery worker and beat."""
    celery = python("-W", "ignore", "-m", "celery", "-A", "worker.tasks")
    schedule = str(servers.folder / "beat-schedule")
    return [
        servers.start(*celery, "worker", "--concurrency", str(processes), "--loglevel", "warning"),
        servers.start(*celery, "beat", "-s", schedule),
    ]


def python(*arguments: str) -> list[str]:
    """Return a command that runs the Python of this process."""
    return [sys.executable, *arguments]


def verify(servers: Servers) -> dict[str, int]:
    """Run `usage-feeds verify`, and fail if it finds a difference."""
    command = python("-m", "worker", "verify", "--json")
    done = subprocess.run(command, cwd=CHECKOUT, env=servers.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"verify: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    found: dict[str, int] = json.loads(done.stdout)
    return found


def organisations(number: int) -> Iterator[str]:
    """Yield the ids of so many organisations."""
    return (f"org_{n:06}" for n in range(number))


def grant_all(servers: Servers, number: int) -> None:
    """Give each organisation a grant with enough credits for any benchmark."""
    events = (
        {"type": "grant", "org_id": org_id, "grant_ref": "grant_plan", "credits": ENOUGH_CREDITS, "source": "plan"}
        for org_id in organisations(number)
    )
    post_directly(servers, events)


def usages(among: int, number: int) -> Iterator[dict[str, object]]:
    """Yield so many usages as a producer writes them, spread over `among` organisations."""
    occurred_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for n in range(number):
        yield {
            "type": "usage",
            "org_id": f"org_{n * 7919 % among:06}",
            "usage_ref": str(TypeID.from_uuid(uuid7(), "usage")),
            "usage_kind": "ai_usage",
            "credits": 1 + n % 9,
            "occurred_at": occurred_at,
        }


def add(redis: Redis, events: Iterable[dict[str, object]]) -> None:
    """Add events to the streams without waking a drain."""
    left = iter(events)
    while group := list(islice(left, ADDED_AT_ONCE)):
        with redis.pipeline(transaction=False) as pipeline:
            for event in group:
                pipeline.xadd(stream_of(shard_of(str(event["org_id"]), SHARDS)), {"event": json.dumps(event)})
            pipeline.execute()


def post_directly(servers: Servers, events: Iterable[dict[str, object]]) -> None:
    """Post events in this process, without the streams, to fill a ledger that is measured later."""
    left, number = iter(events), 0
    with psycopg.connect(servers.database_url, autocommit=True, prepare_threshold=None) as connection:
        ledger = check_ledger(connection, WorkerSettings())
        while group := list(islice(left, POSTED_AT_ONCE)):
            entries = [Entry("bench", f"1-{number + n}", json.dumps(event).encode()) for n, event in enumerate(group)]
            with connection.transaction():
                post_entries(connection, ledger, entries, again=True)
            number += len(group)


async def cache_feeds(servers: Servers, org_ids: Sequence[str]) -> None:
    """Read every feed that the usages belong to, as an endpoint does, so that Redis holds it."""
    postgres = Postgres(servers.database_url, deadline_s=30)
    try:
        async with CachedFeeds(servers.redis_url, partial(fetch_epoch, postgres)) as cached:
            feeds = Feeds(Store(postgres, {"ai_usage": 0, "tm_usage": 1}), SingleFlight(), cached)
            for org_id in org_ids:
                await asyncio.gather(*(read(feeds, org_id, feed, place_page(1, 20)) for feed in WARM_FEEDS))
    finally:
        await postgres.close()
