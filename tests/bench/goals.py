"""Which goals are there, and which are met?"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from tests.bench import reading, writing
from tests.bench.backlog import Run
from tests.bench.growth import Growth
from tests.bench.latency import Latency
from tests.bench.load import Answers
from tests.bench.page_depth import Depth
from tests.bench.sizes import Sizes

CELERY_NOTHING = "Celery on Redis, a task that does nothing"
RABBITMQ_NOTHING = "Celery on RabbitMQ, a task that does nothing"
CELERY_TRANSACTION = "Celery on Redis, one transaction per event"
DRAMATIQ_TRANSACTION = "dramatiq on Redis, one transaction per event"


class Goal(NamedTuple):
    """One row of the table: what is measured, the goal, the figure, and whether the goal is met. None: there is no goal."""

    what: str
    goal: str
    figure: str
    met: bool | None


def at_least(what: str, goal: float, figure: float, unit: str = "×") -> Goal:
    form = ".2f" if goal < 10 else ",.0f"
    return Goal(what, f"≥ {goal:g}{unit}", f"{figure:{form}}{unit}", figure >= goal)


def at_most(what: str, goal: float, figure: float, unit: str = "") -> Goal:
    form = ".2f" if goal < 10 else ",.0f"
    return Goal(what, f"≤ {goal:g}{unit}", f"{figure:{form}}{unit}", figure <= goal)


def judge_writing(runs: Mapping[str, Sequence[Run]], sizes: Mapping[str, Sizes]) -> Iterator[Goal]:
    """Yield the goals of posting. A ratio is a ratio of medians."""

    def rate(name: str) -> float:
        return median(run.rate for run in runs[name])

    def best(start: str) -> float:
        return max(rate(name) for name in runs if name.startswith(start))

    spread = rate(writing.SPREAD)
    if CELERY_NOTHING in runs:
        nothing = rate(CELERY_NOTHING)
        yield at_least(
            "1,000 organisations, against Celery on Redis with a task that does nothing", 30, spread / nothing
        )
        yield at_least("one hot organisation, against the same", 40, rate(writing.HOT) / nothing)
        yield at_least("100,000 organisations, against the same", 15, rate(writing.WIDE) / nothing)
        if RABBITMQ_NOTHING in runs:
            yield Goal(
                "1,000 organisations, against Celery on RabbitMQ with a task that does nothing",
                "",
                f"{spread / rate(RABBITMQ_NOTHING):.0f}×",
                None,
            )
        yield at_least("against Celery with one transaction per event", 50, spread / rate(CELERY_TRANSACTION))
        yield Goal(
            "against dramatiq with one transaction per event", "", f"{spread / rate(DRAMATIQ_TRANSACTION):.0f}×", None
        )
        yield at_least("against hf-nostro, the better of 2 and 8 processes", 50, spread / best("hf-nostro"))
        yield at_least("against pgbench at its best client count", 3, spread / best("pgbench"))
    yield at_most("worker CPU an event, 1,000 organisations, no feed is read", 60, cpu(runs[writing.SPREAD]), " µs")
    yield at_most("worker CPU an event, all feeds are read", 90, cpu(runs[writing.WARM]), " µs")
    if CELERY_NOTHING in runs:
        share = all_cpu(runs[CELERY_NOTHING]) / all_cpu(runs[writing.SPREAD])
        yield at_least("CPU of all processes: a Celery task that does nothing, against one of our events", 15, share)
    for name in (writing.SPREAD, writing.HOT):
        yield at_most(f"Postgres bytes a movement, all indexes: {name}", 345, sizes[name].bytes_per_movement)
    cached = sizes[writing.WARM].bytes_per_cached_item
    assert cached is not None
    yield at_most("Redis bytes an item of a cached feed", 210, cached)


def cpu(runs: Sequence[Run]) -> float:
    return median(run.own_cpu_us for run in runs)


def all_cpu(runs: Sequence[Run]) -> float:
    return median(run.own_cpu_us + run.server_cpu_us for run in runs)


def judge_reading(runs: Mapping[str, Sequence[Answers]], depths: Sequence[Depth]) -> Iterator[Goal]:
    """Yield the goals of reading."""

    def rate(name: str) -> float:
        return median(answers.rate for answers in runs[name])

    static = rate(reading.STATIC)
    yield at_least("page from the process, against the static reply", 0.85, rate(reading.FROM_PROCESS) / static)
    yield at_least("page made of items from Redis, against the static reply", 0.65, rate(reading.FROM_REDIS) / static)
    balance = rate(reading.BALANCE) / rate(reading.STATIC_BALANCE)
    yield at_least("balance from Redis, against a static reply of its size", 0.6, balance)
    if reading.CACHED_PEER in runs:
        yield at_least(
            "page from the process, against fastapi-cache2's hits",
            20,
            rate(reading.FROM_PROCESS) / rate(reading.CACHED_PEER),
        )
        deep = rate(reading.FROM_POSTGRES) / rate(reading.PLAIN_PEER)
        yield at_least("page 40,000 from Postgres, against the uncached peer", 500, deep)
    yield at_most(
        "deep page against page 1, from Postgres, the worst filter", 1.1, max(depth.ratio for depth in depths)
    )


def judge_latency(latency: Latency, startups: Sequence[float]) -> Iterator[Goal]:
    """Yield the goals of latency and of start-up."""
    yield at_most(
        "from adding an event to seeing it on a page over HTTP at 500 events/s, p50", 15, latency.p50_ms, " ms"
    )
    yield at_most("the same, p99", 60, latency.p99_ms, " ms")
    yield at_most("`up` with existing data, until the first page is served", 3, median(startups), " s")


def judge_growth(growth: Growth) -> Iterator[Goal]:
    """Yield the goals of growth."""
    ratios = [
        large.first_ms / small.first_ms for small, large in zip(growth.small_pages, growth.large_pages, strict=True)
    ]
    yield at_least(
        f"{growth.movements:,} movements against 100,000: posting rate",
        0.9,
        growth.large_rate.median / growth.small_rate.median,
    )
    yield at_most("the same: time of a page, the worst filter", 1.1, max(ratios), "×")
    yield at_most("Postgres bytes a movement, all indexes", 345, growth.sizes.bytes_per_movement)
    yield at_most("memory of the largest worker process", 120, max(growth.worker_mb), " MB")
    yield at_most("memory of the endpoint", 120, max(growth.endpoint_mb), " MB")
    yield at_most("`verify` of all of it", 60, growth.verify_s, " s")


def as_json(goals: Sequence[Goal]) -> list[dict[str, Any]]:
    return [goal._asdict() for goal in goals]
