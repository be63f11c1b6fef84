"""Does a page of a large organisation take as long at any depth? On the Postgres path, without a server around it."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

from feeds.movement import Kind
from feeds.page import Filter, place_page
from feeds.postgres import Postgres
from feeds.store import Store, read_place
from tests.bench.ground import Ground
from tests.bench.ours import PLENTY, post_directly, usages

DEEP = "org_deep"
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
    """How long a page of a feed takes from Postgres, in ms: medians of the first and of a deep page, asked in turn."""

    feed: str
    deep_page: int
    first_ms: float
    deep_ms: float
    ratio: float


def fill_deep(ground: Ground, lines: int) -> None:
    """Make an organisation with so many lines, a sixth of them trademark usage."""
    grant = {"type": "grant", "org_id": DEEP, "grant_ref": "grant_plan", "credits": PLENTY, "source": "plan"}
    post_directly(ground, [grant])

    def events() -> Iterator[dict[str, object]]:
        for n, event in enumerate(usages(1, lines - 1)):
            yield event | {"org_id": DEEP, "usage_kind": "ai_usage" if n % 6 else "tm_usage"}

    post_directly(ground, events())


def measure_depth(ground: Ground, times: int) -> list[Depth]:
    """Measure every feed of the deep organisation at page 1 and at page 40,000, or its last."""
    return asyncio.run(measure_all(ground, times))


async def measure_all(ground: Ground, times: int) -> list[Depth]:
    postgres = Postgres(ground.database_url, deadline_s=30)
    try:
        store = Store(postgres, USAGE_NUMBERS)
        return [await measure(store, feed, times) for feed in FILTERS]
    finally:
        await postgres.close()


async def measure(store: Store, feed: Filter, times: int) -> Depth:
    total = (await read_place(store, DEEP, feed, place_page(1, LIMIT))).total
    deep = max(1, min(DEEPEST, total // LIMIT))
    first_s, deep_s = [], []
    for _ in range(times):
        for page, timings in ((1, first_s), (deep, deep_s)):
            began = time.perf_counter()
            await read_place(store, DEEP, feed, place_page(page, LIMIT))
            timings.append(time.perf_counter() - began)
    first_ms, deep_ms = statistics.median(first_s) * 1e3, statistics.median(deep_s) * 1e3
    name = " and ".join(f"{key}={value}" for key, value in feed._asdict().items() if value)
    return Depth(name or "no filter", deep, first_ms, deep_ms, deep_ms / first_ms)
