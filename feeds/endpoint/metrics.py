"""What does the endpoint tell Prometheus?

What this process has counted, the state of the feeds' Redis, and what `sources` add: `serve` adds the write side's.
Nothing here may name an organisation, a key or an address: a scrape needs no key.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from feeds import counters as tally
from feeds.cached.format import FeedsAway, MissReason
from feeds.cached.multiplexer import Multiplexer
from feeds.endpoint.errors import Problem
from feeds.single_flight import SingleFlight

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRESH_S = 1.0
"""For how long a scrape is given to all who ask: they need no key, and must not cost more than this."""
UNPROVEN = (MissReason.TORN, MissReason.CORRUPT)

sources: list[Callable[[], Iterable[Metric]]] = []
"""What else is measured at a scrape, in a thread; none may raise, or take longer than a few seconds."""


class Memory(NamedTuple):
    """What a Redis uses of its memory, in bytes. A limit of 0 is none."""

    used: int
    limit: int


class ScrapeResult:
    """What one scrape has found."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self.found = list(found)

    def collect(self) -> Iterator[Metric]:
        """Yield it."""
        yield from self.found


class Scrapes:
    """Answers scrapes. All who come at once, or within a second, share one."""

    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer
        self._single_flight = SingleFlight()
        self._last = b""
        self._fresh_until = 0.0

    async def read(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        if time.monotonic() >= self._fresh_until:
            await self._single_flight.run("scrape", self._scrape)
        return self._last

    async def _scrape(self) -> None:
        if time.monotonic() < self._fresh_until:
            return  # who came during the last one is given the last one
        memory = await read_memory(self._multiplexer)
        found = [*read_tally(), *redis_metrics("feeds", memory)]
        found += await asyncio.to_thread(measure)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(ScrapeResult(merge(found)))
        self._last = generate_latest(registry)
        self._fresh_until = time.monotonic() + FRESH_S


def measure() -> list[Metric]:
    """Return what the sources measure, one after the other."""
    return [family for source in sources for family in source()]


async def read_memory(multiplexer: Multiplexer) -> Memory | None:
    """Return the memory of the feeds' Redis, None where it gives no answer."""
    try:
        [info] = await multiplexer.ask([("INFO", "memory")], atomic=False)
    except FeedsAway:
        return None
    if not isinstance(info, bytes):
        return None
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return Memory(int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0)))


def read_tally() -> Iterator[Metric]:
    """Yield what this process has counted. Every label that there can be is there from the start, for `rate`."""
    codes = ["page", "unchanged", *sorted(problem.code for problem in Problem.__subclasses__())]
    yield count("answers", "Answers to requests for a page, by the error's code", "code", tally.answers, codes)
    yield count("cache_hits", "Pages proven true", "held_by", tally.hits, ["process", "redis"])
    yield count("cache_misses", "Why the cache could not answer", "reason", tally.misses, list(MissReason))
    unproven = {str(reason): tally.misses[reason] for reason in UNPROVEN}
    yield count("cache_failed_proofs", "Cached lines that did not prove themselves", "reason", unproven, UNPROVEN)
    yield count("refills", "Feeds put into the cache", "outcome", tally.refills, ["put", "refused", "away"])
    yield count("limit_checks", "Where a key's rate was checked", "at", tally.limits, ["redis", "process", "kept"])


def count(name: str, promise: str, label: str, counted: Mapping[str, int], known: Iterable[str]) -> Metric:
    """Return counts by one label; those that are known are there though they are zero."""
    family = CounterMetricFamily(f"usage_feeds_{name}", promise, labels=[label])
    for value in dict.fromkeys([*known, *counted]):
        family.add_metric([str(value)], counted.get(value, 0))
    return family


def redis_metrics(role: str, memory: Memory | None) -> Iterator[Metric]:
    """Yield whether a Redis answers, and its memory against its limit."""
    up = GaugeMetricFamily("usage_feeds_server_up", "Whether a server gave an answer", labels=["server"])
    up.add_metric([f"redis_{role}"], memory is not None)
    yield up
    used = GaugeMetricFamily("usage_feeds_redis_memory_bytes", "Memory that Redis uses", labels=["redis"])
    limit = GaugeMetricFamily("usage_feeds_redis_memory_limit_bytes", "Its maxmemory, 0 for none", labels=["redis"])
    if memory is not None:
        used.add_metric([role], memory.used)
        limit.add_metric([role], memory.limit)
    yield used
    yield limit


def merge(families: Iterable[Metric]) -> Iterator[Metric]:
    """Yield one family for each name, as the format wants it."""
    by_name: dict[str, Metric] = {}
    for family in families:
        if family.name in by_name:
            by_name[family.name].samples += family.samples
        else:
            by_name[family.name] = family
    yield from by_name.values()
