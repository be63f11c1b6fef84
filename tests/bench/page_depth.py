"""Does a page of a large organisation take the same time at any depth? Measured on Postgres, without an endpoint."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

from feeds.movement import Kind
from feeds.page import Filter, place_page
from feeds.postgres import Postgres
from feeds.store import Store, read_place
from tests.bench.servers import Servers
from tests.bench.usage_feeds import ENOUGH_CREDITS, post_directly, usages

LARGE_ORGANISATION = "org_deep"
LIMIT = 20
USAGE_NUMBERS = {"ai_usage": 0, "tm_usage": 1}
FILTERS = (
    Filter(),
    Filter(Kind.CONSUME),
    Filter(usage_kind="ai_usage"),
    Filter(usage_kind="tm_usage"),
    Filter(Kind.CONSUME, "ai_usage"),
    Filter(Kind.CONSUME, "tm_usage"),
)
DEEPEST = 40_000


class Depth(NamedTuple):
    """The time of a page of a feed from Postgres, in ms: medians of the first and of a deep page, read in turn."""

    feed: str
    deep_page: int
    first_ms: float
    deep_ms: float
    ratio: float


def fill_large_organisation(servers: Servers, movements: int) -> None:
    """Create an organisation with so many movements. A sixth of them is `tm_usage`."""
    grant = {
        "type": "grant",
        "org_id": LARGE_ORGANISATION,
        "grant_ref": "grant_plan",
        "credits": ENOUGH_CREDITS,
        "source": "plan",
    }
    post_directly(servers, [grant])

    def events() -> Iterator[dict[str, object]]:
        for n, event in enumerate(usages(1, movements - 1)):
            yield event | {"org_id": LARGE_ORGANISATION, "usage_kind": "ai_usage" if n % 6 else "tm_usage"}

    post_directly(servers, events())


def measure_depth(servers: Servers, times: int) -> list[Depth]:
    """Measure page 1 and page 40,000, or the last page, of every feed of the large organisation."""
    return asyncio.run(measure_all(servers, times))


async def measure_all(servers: Servers, times: int) -> list[Depth]:
    postgres = Postgres(servers.database_url, deadline_s=30)
    try:
        store = Store(postgres, USAGE_NUMBERS)
        return [await measure(store, feed, times) for feed in FILTERS]
    finally:
        await postgres.close()


async def measure(store: Store, feed: Filter, times: int) -> Depth:
    total = (await read_place(store, LARGE_ORGANISATION, feed, place_page(1, LIMIT))).total
    deep = max(1, min(DEEPEST, total // LIMIT))
    first_s, deep_s = [], []
    for _ in range(times):
        for page, timings in ((1, first_s), (deep, deep_s)):
            began = time.perf_counter()
            await read_place(store, LARGE_ORGANISATION, feed, place_page(page, LIMIT))
            timings.append(time.perf_counter() - began)
    first_ms, deep_ms = statistics.median(first_s) * 1e3, statistics.median(deep_s) * 1e3
    name = " and ".join(f"{key}={value}" for key, value in feed._asdict().items() if value)
    return Depth(name or "no filter", deep, first_ms, deep_ms, deep_ms / first_ms)
