"""Which metrics does the endpoint give to Prometheus?

What this process has counted, the state of the feeds' Redis, and what the app's metric sources add: `serve` adds the
worker's metrics. Nothing here may name an organisation, a key or an address, because a scrape needs no key.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from feeds import counters
from feeds.cached.format import FeedsAway, MissReason
from feeds.cached.multiplexer import Multiplexer
from feeds.endpoint.errors import FAILED, Problem
from feeds.single_flight import SingleFlight

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRESH_S = 1.0
"""How long one scrape is reused: callers need no key, so they must not be able to cost more than this."""
NOT_VALID = (MissReason.TORN, MissReason.CORRUPT)

Source = Callable[[], Iterable[Metric]]
"""Measures something at a scrape, in a thread. It may not raise, or take longer than a few seconds."""


class Memory(NamedTuple):
    """What a Redis uses of its memory, in bytes. A limit of 0 is none."""

    used: int
    limit: int


class ScrapeResult:
    """The metrics of one scrape, in the form that prometheus_client collects."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self.metrics


class Scrapes:
    """Answers scrapes. Concurrent callers, and callers within a second, share one."""

    def __init__(self, multiplexer: Multiplexer, sources: Sequence[Source] = ()) -> None:
        self._multiplexer = multiplexer
        self._sources = sources
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
            return  # this caller arrived during the last scrape and gets its result
        memory = await read_memory(self._multiplexer)
        found = [*counter_metrics(), *redis_metrics("feeds", memory)]
        found += await asyncio.to_thread(measure, self._sources)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(ScrapeResult(merge(found)))
        self._last = generate_latest(registry)
        self._fresh_until = time.monotonic() + FRESH_S


def measure(sources: Sequence[Source]) -> list[Metric]:
    """Return what the sources measure, one after the other."""
    return [family for source in sources for family in source()]


async def read_memory(multiplexer: Multiplexer) -> Memory | None:
    """Return the memory of the feeds' Redis, None if it does not answer."""
    try:
        [info] = await multiplexer.send([("INFO", "memory")], atomic=False)
    except FeedsAway:
        return None
    if not isinstance(info, bytes):
        return None
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return Memory(int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0)))


def counter_metrics() -> Iterator[Metric]:
    """Yield what this process has counted. Every possible label is there from the start, so that `rate` works."""
    problems = {problem.code_of(noun) for problem in Problem.__subclasses__() for noun in FAILED}
    codes = ["page", "unchanged", *sorted(problems)]
    yield counter("answers", "Answers to requests for a page, by the error's code", "code", counters.answers, codes)
    held_by = ["process", "redis"]
    yield counter("cache_hits", "Pages served from a cache, found to be current", "held_by", counters.hits, held_by)
    yield counter("cache_misses", "Why the cache could not answer", "reason", counters.misses, list(MissReason))
    not_valid = {str(reason): counters.misses[reason] for reason in NOT_VALID}
    yield counter("cache_failed_proofs", "Cached items and counts that were not valid", "reason", not_valid, NOT_VALID)
    yield counter("refills", "Feeds put into the cache", "outcome", counters.refills, ["put", "refused", "away"])
    yield counter("limit_checks", "Where a key's rate was checked", "at", counters.limits, ["redis", "process", "kept"])


def counter(name: str, help_: str, label: str, counted: Mapping[str, int], known: Iterable[str]) -> Metric:
    """Return counts by one label; a known value is there even if its count is zero."""
    family = CounterMetricFamily(f"usage_feeds_{name}", help_, labels=[label])
    for value in dict.fromkeys([*known, *counted]):
        family.add_metric([str(value)], counted.get(value, 0))
    return family


def redis_metrics(role: str, memory: Memory | None) -> Iterator[Metric]:
    """Yield whether a Redis answers, its memory and its memory limit."""
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
    """Yield one family for each name, as the text format requires."""
    by_name: dict[str, Metric] = {}
    for family in families:
        if family.name in by_name:
            by_name[family.name].samples += family.samples
        else:
            by_name[family.name] = family
    yield from by_name.values()
