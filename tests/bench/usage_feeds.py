"""How do our own workers post events, and how are ledgers made for that?"""

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
from tests.bench.ground import WORKER_PROCESSES, Ground
from tests.servers import CHECKOUT
from worker.intake.streams import shard_of, stream_of
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries
from worker.local.children import Process
from worker.settings import WorkerSettings

SHARDS = 8
PLENTY = 10**12
AT_ONCE = 2000
ADDED_AT_ONCE = 2000
WARM_FEEDS = (
    Filter(),
    Filter(kind=Kind.CONSUME),
    Filter(usage_kind="ai_usage"),
    Filter(kind=Kind.CONSUME, usage_kind="ai_usage"),
)
"""Every feed that a drawn usage of this kind is a line of."""


class Ours:
    """Single events on streams, posted by a Celery worker with two processes and shown in the feeds.

    Every organisation has a grant that suffices. `warm`: all feeds of all organisations are being read.
    """

    def __init__(self, name: str, organisations: int, events: int, *, warm: bool = False) -> None:
        self.name = name
        self.organisations = organisations
        self.events = events
        self.warm = warm

    def fill(self, ground: Ground, events: int) -> None:
        """Put the events on the streams, and the feeds into Redis if they are to be warm."""
        if self.warm:
            asyncio.run(warm(ground, list(organisations(self.organisations))))
        with Redis.from_url(ground.redis_url) as redis:
            add(redis, usages(self.organisations, events))

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        """Start worker and schedule, as the README says."""
        return start_worker(ground)

    def left(self, ground: Ground) -> int:
        """Return how many events wait: each does until it is committed and shown."""
        return count_waiting(ground)

    def check(self, ground: Ground, events: int) -> None:
        """Verify ledger and feeds, and that every usage is in them."""
        with psycopg.connect(ground.database_url) as connection:
            [(found,)] = connection.execute("SELECT count(*) FROM movements WHERE usage_number IS NOT NULL").fetchall()
        assert found == events, f"{found} of {events} usages are in the ledger"
        verify(ground)


def count_waiting(ground: Ground) -> int:
    """Return how many entries are on the streams."""
    with Redis.from_url(ground.redis_url) as redis, redis.pipeline(transaction=False) as pipeline:
        for shard in range(SHARDS):
            pipeline.xlen(stream_of(shard))
        return sum(pipeline.execute())


def start_worker(ground: Ground, processes: int = WORKER_PROCESSES) -> list[Process]:
    """Start a Celery worker and beat."""
    celery = python("-W", "ignore", "-m", "celery", "-A", "worker.tasks")
    schedule = str(ground.folder / "beat-schedule")
    return [
        ground.start(*celery, "worker", "--concurrency", str(processes), "--loglevel", "warning"),
        ground.start(*celery, "beat", "-s", schedule),
    ]


def python(*arguments: str) -> list[str]:
    """Return the command that runs this very Python."""
    return [sys.executable, *arguments]


def verify(ground: Ground) -> dict[str, int]:
    """Run `usage-feeds verify`, and fail unless it finds no difference."""
    command = python("-m", "worker", "verify", "--json")
    done = subprocess.run(command, cwd=CHECKOUT, env=ground.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"verify: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    found: dict[str, int] = json.loads(done.stdout)
    return found


def organisations(number: int) -> Iterator[str]:
    """Yield the names of so many organisations."""
    return (f"org_{n:06}" for n in range(number))


def grant_all(ground: Ground, number: int) -> None:
    """Give each organisation a grant that suffices for any benchmark."""
    events = (
        {"type": "grant", "org_id": org_id, "grant_ref": "grant_plan", "credits": PLENTY, "source": "plan"}
        for org_id in organisations(number)
    )
    post_directly(ground, events)


def usages(among: int, number: int) -> Iterator[dict[str, object]]:
    """Yield usages as a producer writes them, spread over so many organisations."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for n in range(number):
        yield {
            "type": "usage",
            "org_id": f"org_{n * 7919 % among:06}",
            "usage_ref": str(TypeID.from_uuid(uuid7(), "usage")),
            "usage_kind": "ai_usage",
            "credits": 1 + n % 9,
            "occurred_at": at,
        }


def add(redis: Redis, events: Iterable[dict[str, object]]) -> None:
    """Add events to the streams, waking nobody."""
    left = iter(events)
    while group := list(islice(left, ADDED_AT_ONCE)):
        with redis.pipeline(transaction=False) as pipeline:
            for event in group:
                pipeline.xadd(stream_of(shard_of(str(event["org_id"]), SHARDS)), {"event": json.dumps(event)})
            pipeline.execute()


def post_directly(ground: Ground, events: Iterable[dict[str, object]]) -> None:
    """Post events without the streams, in this process: to make a ledger that is measured later."""
    left, number = iter(events), 0
    with psycopg.connect(ground.database_url, autocommit=True, prepare_threshold=None) as connection:
        ledger = check_ledger(connection, WorkerSettings())
        while group := list(islice(left, AT_ONCE)):
            entries = [Entry("bench", f"1-{number + n}", json.dumps(event).encode()) for n, event in enumerate(group)]
            with connection.transaction():
                post_entries(connection, ledger, entries, again=True)
            number += len(group)


async def warm(ground: Ground, org_ids: Sequence[str]) -> None:
    """Read every feed that the usages will be shown in, as an endpoint does."""
    postgres = Postgres(ground.database_url, deadline_s=30)

    try:
        async with CachedFeeds(ground.redis_url, partial(fetch_epoch, postgres)) as cached:
            feeds = Feeds(Store(postgres, {"ai_usage": 0, "tm_usage": 1}), SingleFlight(), cached)
            for org_id in org_ids:
                await asyncio.gather(*(read(feeds, org_id, feed, place_page(1, 20)) for feed in WARM_FEEDS))
    finally:
        await postgres.close()
