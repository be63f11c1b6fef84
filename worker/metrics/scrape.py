"""What does the write side report to Prometheus?

A scrape measures Postgres and the streams' Redis. Any process can be scraped: `serve` adds these metrics to those of
the endpoint. If a server is away, or refuses the process's role or Redis user, its metrics are missing and
`usage_feeds_server_up` is 0.
"""

from collections.abc import Iterable, Iterator

import psycopg
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from redis.exceptions import RedisError

from feeds.database import READING, begin
from feeds.database import connect as connect_database
from feeds.endpoint.metrics import Memory, redis_metrics
from feeds.queries import load_queries
from worker.events import EventRefused
from worker.intake.backlog import Backlog, parse_backlogs, queue_backlogs
from worker.intake.counters import COUNTS, VERIFIED, read_counts
from worker.intake.failures import FAILURES, Failure, parse_failures
from worker.intake.streams import connect
from worker.intake.sweep import SWEPT
from worker.settings import worker_settings

SQL = load_queries(__file__)

CONNECT_WITHIN_S = 2
COUNTERS = {
    "events": ("Events taken from the streams, by type and outcome", ["type", "outcome"]),
    "movements": ("Movements written to the ledger", ["kind"]),
    "batches": ("Batches posted", []),
    "batch_splits": ("Batches halved to find an event that the database refuses", []),
    "shown": ("Organisations whose cached feeds were brought up to date; `given_up` counts batches", ["outcome"]),
}


def measure() -> Iterator[Metric]:
    """Yield the state of the write side now."""
    yield from ledger_metrics()
    yield from redis_stream_metrics()


def ledger_metrics() -> Iterator[Metric]:
    """Yield what Postgres knows of the write side."""
    up = GaugeMetricFamily("usage_feeds_server_up", "Whether a server gave an answer", labels=["server"])
    age = gauge("last_batch_age_seconds", "How long ago a batch was last posted")
    dead = gauge("dead_letters", "Events that could not be posted, by code; at most 1,000,000 are counted", "code")
    try:
        with (
            connect_database(worker_settings().database_url, CONNECT_WITHIN_S) as connection,
            begin(connection, READING),
        ):
            connection.execute(SQL["bound_scrape"])
            [(last_batch_age_s,)] = connection.execute(SQL["read_last_batch_age"]).fetchall()
            counted = connection.execute(SQL["count_dead_letters"], {"codes": list(codes_of(EventRefused))}).fetchall()
    except psycopg.Error:
        up.add_metric(["postgres"], 0)
        yield up
        return
    up.add_metric(["postgres"], 1)
    yield up
    if last_batch_age_s is not None:
        age.add_metric([], last_batch_age_s)
    for code, number in counted:
        dead.add_metric([code], number)
    yield age
    yield dead


def codes_of(refused: type[EventRefused]) -> Iterator[str]:
    """Yield every code that a dead letter may have. All are reported from the start, so that the first rise is seen."""
    yield refused.code
    for narrower in refused.__subclasses__():
        yield from codes_of(narrower)


def redis_stream_metrics() -> Iterator[Metric]:
    """Yield what the streams' Redis knows of the write side."""
    shards = range(worker_settings().event_shards)
    try:
        with connect(worker_settings().redis_url) as streams:
            pipeline = streams.pipeline(transaction=False)
            pipeline.time()
            pipeline.get(SWEPT)
            pipeline.info("memory")
            pipeline.hgetall(COUNTS)
            pipeline.hgetall(VERIFIED)
            pipeline.hgetall(FAILURES)
            queue_backlogs(pipeline, shards)
            clock, swept, info, counts, verified, failures, *backlogs = pipeline.execute(raise_on_error=False)
    except (RedisError, ValueError):  # ValueError: the address is not valid
        yield from redis_metrics("streams", None)
        return
    memory = info if isinstance(info, dict) else {}
    yield from redis_metrics("streams", Memory(memory.get("used_memory", 0), memory.get("maxmemory", 0)))
    if isinstance(clock, tuple):
        now_s = clock[0] + clock[1] / 1e6
        yield from backlog_metrics(now_s, parse_backlogs(shards, backlogs))
        yield failure_metric(now_s, parse_failures(failures))
        yield sweep_metric(now_s, swept)
        yield from verify_metrics(now_s, verified if isinstance(verified, dict) else {})
    yield from counter_metrics(counts if isinstance(counts, dict) else {})


def backlog_metrics(now_s: float, backlogs: Iterable[Backlog]) -> Iterator[Metric]:
    """Yield what waits in each shard, at a time of Redis's clock."""
    waiting = gauge("stream_events", "Events that wait", "shard")
    oldest = gauge("stream_oldest_seconds", "For how long the oldest event has waited", "shard")
    broken = gauge("stream_broken", "Whether a shard's key cannot be read as a stream", "shard")
    for backlog in backlogs:
        shard = [str(backlog.shard)]
        broken.add_metric(shard, backlog.is_broken)
        if not backlog.is_broken:
            waiting.add_metric(shard, backlog.length)
            oldest.add_metric(shard, backlog.age_s(now_s))
    yield from (waiting, oldest, broken)


def failure_metric(now_s: float, failures: Iterable[Failure]) -> Metric:
    """Return how old the failures are of the shards that could not be posted since."""
    age = gauge(
        "shard_failure_age_seconds", "How long ago the surroundings failed a batch; none was posted since", "shard"
    )
    for failure in failures:
        age.add_metric([str(failure.shard)], max(0.0, now_s - failure.at_s))
    return age


def sweep_metric(now_s: float, swept: object) -> Metric:
    """Return how old the last sweep is, given the value of its key."""
    age = gauge("last_sweep_age_seconds", "How long ago the last sweep ended")
    if isinstance(swept, bytes):
        age.add_metric([], max(0.0, now_s - float(swept)))
    return age


def verify_metrics(now_s: float, fields: dict[bytes, bytes]) -> Iterator[Metric]:
    """Yield when the whole ledger was last verified, and how many differences there were."""
    age = gauge("last_verify_age_seconds", "How long ago `verify` last checked the whole ledger")
    differences = gauge("last_verify_differences", "How many differences it found")
    if fields:
        age.add_metric([], max(0.0, now_s - int(fields[b"at"])))
        differences.add_metric([], int(fields[b"differences"]))
    yield from (age, differences)


def counter_metrics(fields: dict[bytes, bytes]) -> Iterator[Metric]:
    """Yield what the worker processes have counted."""
    counts = read_counts(fields)
    for name, (description, labels) in COUNTERS.items():
        family = CounterMetricFamily(f"usage_feeds_{name}", description, labels=labels)
        for values, number in counts.get(name, {(): 0} if not labels else {}).items():
            if len(values) == len(labels):
                family.add_metric(list(values), number)
        yield family


def gauge(name: str, description: str, *labels: str) -> GaugeMetricFamily:
    """Return a gauge of ours, without samples."""
    return GaugeMetricFamily(f"usage_feeds_{name}", description, labels=labels)
