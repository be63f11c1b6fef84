"""A ledger in memory, and servers of a test's own, for the tests of the cached feeds."""

import asyncio
import secrets
import shutil
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from feeds.cached import format as proof
from feeds.cached.format import Hit
from feeds.cached.reader import CachedFeeds
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import Kind, Movement, render
from feeds.page import Place, feed_numbers, place_page
from feeds.store import Slice
from tests import servers
from worker.local import children
from worker.local.valkey import SIGNALS, Valkey, start_valkey

ORG = "org_a"
FEED = 0
COUNT = Place(1, skip=10**6)
"""A place past every end: what is found there is the count alone."""
PROGRAMS = [None, *map(Path, filter(None, [shutil.which("redis-server")]))]
"""Servers that `own_server` can start: the wheel's, and Redis where this machine has it."""


class FeedLedger:
    """Movements of any organisation, as Postgres would keep them."""

    def __init__(self) -> None:
        self.epoch = uuid4()
        self.feeds: dict[tuple[str, int], list[Movement]] = {}
        self.reads = 0

    def post(self, org_id: str, count: int = 1, kind: Kind = Kind.ALLOT) -> list[Movement]:
        """Commit movements of one kind, and return them."""
        return [self.post_one(org_id, kind) for _ in range(count)]

    def post_one(self, org_id: str, kind: Kind) -> Movement:
        usage_number = 0 if kind in {Kind.CONSUME, Kind.OVERFLOW} else None
        numbers = feed_numbers(kind, usage_number)
        ordinals = {number: self.total(org_id, number) + 1 for number in numbers}
        movement = Movement(
            id=UUID(bytes=secrets.token_bytes(16), version=4),
            kind=kind,
            credits=ordinals[0] if kind is Kind.ALLOT else -ordinals[0],
            usage_kind=None if usage_number is None else "ai_usage",
            usage_ref=f"ref_{ordinals[0]}",
            created_at=datetime(2026, 6, 1, tzinfo=UTC) + timedelta(seconds=ordinals[0]),
            ordinals=ordinals,
        )
        for number in numbers:
            self.feeds.setdefault((org_id, number), []).append(movement)
        return movement

    def total(self, org_id: str, feed: int) -> int:
        return len(self.feeds.get((org_id, feed), []))

    def newest_first(self, org_id: str, feed: int) -> list[bytes]:
        return [render(movement) for movement in reversed(self.feeds.get((org_id, feed), []))]

    async def read_epoch(self) -> UUID:
        return self.epoch

    def reader(self, org_id: str, feed: int, window: int = 200):
        """Return the function by which a refill reads this feed."""

        async def read_newest() -> Slice:
            self.reads += 1
            total, entries = self.total(org_id, feed), self.newest_first(org_id, feed)
            return Slice(self.epoch, total, total, entries[:window])

        return read_newest


@contextmanager
def own_server(folder: Path | None = None, program: Path | None = None) -> Iterator[Valkey]:
    """Give a Valkey of the test's own, which it may stop, pause, fill or fail over."""
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
def link_to(url):
    link = WorkerConnection(url)
    try:
        yield link
    finally:
        link.close()


@asynccontextmanager
async def cached_feeds(url, ledger, **more):
    async with CachedFeeds(url, ledger.read_epoch, **more) as feeds:
        yield feeds


async def read(feeds, ledger, feed=FEED, place=None):
    """Read the first page as an endpoint does: from the cache, else refilled."""
    place = place or place_page(1, 20)
    answer = await feeds.page(ORG, feed, place)
    if isinstance(answer, Hit):
        return answer
    newest = await feeds.refill(ORG, feed, ledger.reader(ORG, feed))
    return Hit(newest.total, newest.entries[place.skip : place.skip + place.limit])


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- others set no event for it
            await asyncio.sleep(0.01)


def hash_of(link, ledger, org_id=ORG):
    return proof.hash_key(proof.stamp(ledger.epoch, link.server()), org_id)


def expected(ledger, feed=FEED, place=None):
    place = place or place_page(1, 20)
    return Hit(ledger.total(ORG, feed), ledger.newest_first(ORG, feed)[place.skip : place.skip + place.limit])
