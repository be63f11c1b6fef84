"""A ledger in memory, and servers that one test owns, for the tests of the cached feeds."""

import asyncio
import secrets
import shutil
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from feeds import read_through
from feeds.cached.format import Hit, hash_key, make_stamp
from feeds.cached.reader import CachedFeeds
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import Kind, Movement, render_item
from feeds.page import Place, cut, feed_numbers, filter_of, place_page
from feeds.read_through import FeedId, Feeds
from feeds.single_flight import SingleFlight
from feeds.store import Slice, Store, read_newest
from tests import servers
from worker.local import children
from worker.local.valkey import SIGNALS, Valkey, start_valkey

ORG = "org_a"
FEED = 0
COUNT = Place(1, skip=10**6)
"""A place past every end: only the count is found there."""
KINDS = ("ai_usage", "tm_usage")
PROGRAMS = [None, *map(Path, filter(None, [shutil.which("redis-server")]))]
"""The servers that `own_server` can start: the wheel's, and Redis if this machine has it."""


class FeedLedger:
    """Movements of any organisation in memory. It stands in for `feeds.postgres.Postgres`, and counts reads."""

    def __init__(self) -> None:
        self.epoch = uuid4()
        self.feeds: dict[tuple[str, int], list[Movement]] = {}
        self.reads = 0
        self.store = Store(self, {kind: number for number, kind in enumerate(KINDS)})

    def post(self, org_id: str, count: int = 1, kind: Kind = Kind.ALLOT) -> list[Movement]:
        """Commit movements of one kind, and return them."""
        return [self.post_one(org_id, kind) for _ in range(count)]

    def post_one(self, org_id: str, kind: Kind) -> Movement:
        usage_number = 0 if kind in {Kind.CONSUME, Kind.OVERFLOW} else None
        numbers = feed_numbers(kind, usage_number)
        ordinals = {number: self.total(org_id, number) + 1 for number in numbers}
        movement = Movement(
            kind=kind,
            credits=ordinals[0] if kind is Kind.ALLOT else -ordinals[0],
            usage_kind=None if usage_number is None else "ai_usage",
            usage_ref=f"ref_{ordinals[0]}",
            created_at=datetime(2026, 6, 1, tzinfo=UTC) + timedelta(seconds=ordinals[0]),
            ordinals=ordinals,
            hash=secrets.token_bytes(32),
        )
        for number in numbers:
            self.feeds.setdefault((org_id, number), []).append(movement)
        return movement

    def total(self, org_id: str, feed: int) -> int:
        return len(self.feeds.get((org_id, feed), []))

    def newest_first(self, org_id: str, feed: int) -> list[bytes]:
        return [render_item(movement) for movement in reversed(self.feeds.get((org_id, feed), []))]

    async def fetch_epoch(self) -> UUID:
        return self.epoch

    async def fetch(self, _query, parameters, *, org_id):
        """Return the rows of `read_page`, the only query that is sent to this ledger."""
        self.reads += 1
        movements = self.feeds.get((org_id, parameters["element"] - 1), [])
        total = len(movements)
        span = cut(Place(*(parameters[name] for name in Place._fields)), total)
        rows = [
            (
                self.epoch,
                total,
                ordinal,
                one.hash,
                one.kind.letter,
                one.credits,
                one.usage_kind,
                one.usage_ref,
                one.created_at,
            )
            for ordinal, one in ((ordinal, movements[ordinal - 1]) for ordinal in range(span.newest, span.below, -1))
        ]
        return rows or [(self.epoch, total, *[None] * 7)]


async def read_from(ledger, feed=FEED, org_id=ORG, window=200) -> Slice:
    """Return what the ledger itself holds of a feed's newest items."""
    return await read_newest(ledger.store, org_id, filter_of(feed, KINDS), window)


@contextmanager
def own_server(folder: Path | None = None, program: Path | None = None) -> Iterator[Valkey]:
    """Give a Valkey that one test owns, so that it may stop, pause, fill or fail over the server."""
    with servers.server_folder() as fresh:
        where = folder or fresh / "valkey"
        where.parent.mkdir(parents=True, exist_ok=True)
        with (fresh / "log").open("wb") as log:
            server = start_valkey(where, log, program=program)
            try:
                yield server
            finally:
                children.stop(server.process, SIGNALS, within_s=10)


@contextmanager
def worker_connection(url):
    feeds_redis = WorkerConnection(url)
    try:
        yield feeds_redis
    finally:
        feeds_redis.close()


@asynccontextmanager
async def cached_feeds(url, ledger, **options):
    async with CachedFeeds(url, ledger.fetch_epoch, **options) as cache:
        yield cache


async def read(cache, ledger, feed=FEED, place=None, org_id=ORG):
    """Read the first page as an endpoint does: from the cache, else from the ledger, which refills the cache."""
    feeds = Feeds(ledger.store, SingleFlight(), cache)
    found = await read_through.read(feeds, org_id, filter_of(feed, KINDS), place or place_page(1, 20))
    return Hit(found.total, found.items)


async def refill(cache, ledger, feed=FEED, org_id=ORG):
    """Read a feed from the ledger and put it into the cache, as an endpoint does after a miss."""
    return await read_through.refill(
        Feeds(ledger.store, SingleFlight(), cache), FeedId(org_id, filter_of(feed, KINDS), feed)
    )


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- there is no event to wait for
            await asyncio.sleep(0.01)


def hash_of(feeds_redis, ledger, org_id=ORG):
    """Return the key of an organisation's hash."""
    return hash_key(make_stamp(ledger.epoch, feeds_redis.server()), org_id)


def expected(ledger, feed=FEED, place=None):
    """Return the page that a reader must get."""
    place = place or place_page(1, 20)
    return Hit(ledger.total(ORG, feed), ledger.newest_first(ORG, feed)[place.skip : place.skip + place.limit])
