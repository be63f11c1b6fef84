"""What does the write side tell Prometheus?

Measured at the scrape, in Postgres and in the streams' Redis, by whichever process is scraped: `serve` adds it to the
endpoint's metrics. Where its role or its Redis user may not look, or a server is away, that part is left out and
`usage_feeds_server_up` says so.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from redis.exceptions import RedisError

from feeds.endpoint.metrics import Memory, redis_metrics
from feeds.queries import load_queries
from worker.events import EventRefused
from worker.intake.counters import COUNTS, VERIFIED, read_counts
from worker.intake.streams import connect, stream_of
from worker.intake.sweep import SWEPT
from worker.settings import worker_settings

SQL = load_queries(__file__)

CONNECT_S = 2
COUNTERS = {
    "events": ("Events taken from the streams, by type and by what became of them", ["type", "outcome"]),
    "movements": ("Lines written to the ledger", ["kind"]),
    "batches": ("Batches posted", []),
    "batch_splits": ("Batches halved in search of an event that the database refuses", []),
    "shown": ("Organisations whose cached feeds were brought up to date; `given_up` counts batches", ["outcome"]),
}


def measure() -> Iterator[Metric]:
    """Yield the state of the write side, now."""
    yield from ledger_metrics()
    yield from redis_stream_metrics()


def ledger_metrics() -> Iterator[Metric]:
    """Yield what Postgres says of the work."""
    up = GaugeMetricFamily("usage_feeds_server_up", "Whether a server gave an answer", labels=["server"])
    age = gauge("last_batch_age_seconds", "How long ago a batch was last posted")
    dead = gauge("dead_letters", "Events that could not be posted, by code", "code")
    try:
        with psycopg.connect(
            worker_settings().database_url, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_S
        ) as connection:
            connection.execute(SQL["bound_work"])
            [(last_batch_s,)] = connection.execute(SQL["read_work"]).fetchall()
            letters = connection.execute(SQL["count_dead_letters"]).fetchall()
    except psycopg.Error:
        up.add_metric(["postgres"], 0)
        yield up
        return
    up.add_metric(["postgres"], 1)
    yield up
    if last_batch_s is not None:
        age.add_metric([], last_batch_s)
    for code, number in (dict.fromkeys(codes_of(EventRefused), 0) | dict(letters)).items():
        dead.add_metric([code], number)
    yield age
    yield dead


def codes_of(refused: type[EventRefused]) -> Iterator[str]:
    """Yield every code that a dead letter may have: a number that is there from the start can be seen to rise."""
    yield refused.code
    for narrower in refused.__subclasses__():
        yield from codes_of(narrower)


def redis_stream_metrics() -> Iterator[Metric]:
    """Yield what the streams' Redis says of the work."""
    shards = range(worker_settings().event_shards)
    try:
        with connect(worker_settings().redis_url) as redis:
            pipeline = redis.pipeline(transaction=False)
            pipeline.time()
            pipeline.get(SWEPT)
            pipeline.info("memory")
            pipeline.hgetall(COUNTS)
            pipeline.hgetall(VERIFIED)
            for shard in shards:
                pipeline.xlen(stream_of(shard))
                pipeline.xrange(stream_of(shard), count=1)
            clock, swept, memory, counted, verified, *found = pipeline.execute(raise_on_error=False)
    except (RedisError, ValueError):  # ValueError: an address that cannot be read
        yield from redis_metrics("streams", None)
        return
    told = memory if isinstance(memory, dict) else {}
    yield from redis_metrics("streams", Memory(told.get("used_memory", 0), told.get("maxmemory", 0)))
    if isinstance(clock, tuple):
        now = clock[0] + clock[1] / 1e6
        yield from stream_metrics(now, swept, found)
        yield from verify_metrics(now, verified if isinstance(verified, dict) else {})
    yield from counter_metrics(counted if isinstance(counted, dict) else {})


def stream_metrics(now: float, swept: object, found: list[Any]) -> Iterator[Metric]:
    """Yield what waits, by shard, and how old the last sweep is. Ages are of Redis's clock; ids may lie ahead of it."""
    waiting = gauge("stream_events", "Events that wait", "shard")
    oldest = gauge("stream_oldest_seconds", "For how long the oldest event has waited", "shard")
    broken = gauge("stream_broken", "Whether a shard's key cannot be read as a stream", "shard")
    for shard, (length, first) in enumerate(zip(found[::2], found[1::2], strict=True)):
        is_broken = not isinstance(length, int) or not isinstance(first, list)
        broken.add_metric([str(shard)], is_broken)
        if not is_broken:
            waiting.add_metric([str(shard)], length)
            age = now - int(first[0][0].partition(b"-")[0]) / 1000 if first else 0.0
            oldest.add_metric([str(shard)], max(0.0, age))
    yield from (waiting, oldest, broken)
    sweep = gauge("last_sweep_age_seconds", "How long ago the last sweep ended")
    if isinstance(swept, bytes):
        sweep.add_metric([], max(0.0, now - float(swept)))
    yield sweep


def verify_metrics(now: float, fields: dict[bytes, bytes]) -> Iterator[Metric]:
    """Yield when the whole ledger was last verified, and what was found."""
    age = gauge("last_verify_age_seconds", "How long ago `verify` last went through the whole ledger")
    differences = gauge("last_verify_differences", "How many differences it found")
    if fields:
        age.add_metric([], max(0.0, now - int(fields[b"at"])))
        differences.add_metric([], int(fields[b"differences"]))
    yield from (age, differences)


def counter_metrics(fields: dict[bytes, bytes]) -> Iterator[Metric]:
    """Yield what workers have counted."""
    counts = read_counts(fields)
    for name, (promise, labels) in COUNTERS.items():
        family = CounterMetricFamily(f"usage_feeds_{name}", promise, labels=labels)
        for values, number in counts.get(name, {(): 0} if not labels else {}).items():
            if len(values) == len(labels):
                family.add_metric(list(values), number)
        yield family


def gauge(name: str, promise: str, *labels: str) -> GaugeMetricFamily:
    """Return a family of ours, without samples."""
    return GaugeMetricFamily(f"usage_feeds_{name}", promise, labels=labels)
