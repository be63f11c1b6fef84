"""Is a ledger of ten million movements as fast as one of a hundred thousand?

One ledger is filled through the streams by a real worker. Then it and a small one, in another database of the same server,
post in turn.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import psycopg
from redis import Redis

from tests.bench.deep import DEEP, LIMIT, Depth, fill_deep, measure_depth
from tests.bench.figures import Figure, summarise
from tests.bench.ground import Ground, migrated, settle_down
from tests.bench.latency import posting
from tests.bench.load import Asked, ask
from tests.bench.ours import Ours, add, count_waiting, grant_all, start_worker, usages, verify
from tests.bench.race import Run, clock
from tests.bench.reading import ENDPOINT, make_key, serving
from tests.bench.sizes import Sizes, measure_sizes
from tests.bench.usage import family, memory_mb
from tests.servers import wait_until
from worker.local import children

ORGANISATIONS = 1000
SMALL = 100_000
EVENTS = 60_000
CHUNK = 100_000
FILL_WITHIN_S = 7200


class Growth(NamedTuple):
    """Figures of the small ledger and of the large one: events a second, pages from Postgres, bytes, memory in MB."""

    movements: int
    small_rate: Figure
    large_rate: Figure
    small_pages: list[Depth]
    large_pages: list[Depth]
    sizes: Sizes
    verify_s: float
    worker_mb: list[float]
    endpoint_mb: list[float]


def measure_growth(ground: Ground, movements: int, requests: int, rounds: int, say: Any) -> Growth:
    """Grow a ledger, and measure it in turn with a small one."""
    with begun(ground, flush=True) as large:
        worker_mb = grow(large, movements, say)
        settle_down(large)
        with begun(ground, flush=False) as small:
            small_rate, large_rate = race(small, large, rounds, say)
            small_pages, large_pages = measure_depth(small, 400), measure_depth(large, 400)
            verify(small)
        endpoint_mb = serve_many(large, requests, say)
        began = time.perf_counter()
        found = verify(large)
        verify_s = time.perf_counter() - began
        sizes = measure_sizes(large)
    return Growth(
        found["movements"], small_rate, large_rate, small_pages, large_pages, sizes, verify_s, worker_mb, endpoint_mb
    )


@contextmanager
def begun(ground: Ground, *, flush: bool) -> Iterator[Ground]:
    """Give a small ledger: many organisations with nothing but a grant, and one with many lines."""
    with migrated(ground, flush=flush) as ledger:
        grant_all(ledger, ORGANISATIONS)
        fill_deep(ledger, SMALL)
        settle_down(ledger)
        yield ledger


def race(small: Ground, large: Ground, rounds: int, say: Any) -> tuple[Figure, Figure]:
    """Return how fast a backlog is posted to either ledger."""
    runs: dict[str, list[Run]] = {"small": [], "large": []}
    for number in range(1, rounds + 1):
        for name, ledger in (("small", small), ("large", large)):
            run = post_backlog(ledger)
            runs[name].append(run)
            say(f"round {number}: {name}: {run.rate:,.0f}/s, {run.own_cpu_us:.1f} + {run.server_cpu_us:.1f} µs")
    small_rate, large_rate = (summarise([run.rate for run in of_name]) for of_name in runs.values())
    return small_rate, large_rate


def post_backlog(ledger: Ground) -> Run:
    """Have a worker post so many events that wait."""
    contender = Ours("growth", ORGANISATIONS, EVENTS)
    contender.fill(ledger, EVENTS)
    processes = contender.start(ledger, EVENTS)
    try:
        return clock(contender, ledger, processes)
    finally:
        for process in processes:
            children.end_group(process)


def grow(ledger: Ground, movements: int, say: Any) -> list[float]:
    """Let a worker post until the ledger has so many movements; return what its processes use, in MB, at the end."""
    with psycopg.connect(ledger.database_url) as connection:
        [(there,)] = connection.execute("SELECT count(*) FROM movements").fetchall()
    processes = start_worker(ledger)
    try:
        with Redis.from_url(ledger.redis_url) as redis:
            for done in range(there, movements, CHUNK):
                wait_until(lambda: count_waiting(ledger) < CHUNK, FILL_WITHIN_S)
                add(redis, usages(ORGANISATIONS, min(CHUNK, movements - done)))
                if done // CHUNK % 10 == 0:
                    say(f"{done:,} movements, worker {max(map(memory_mb, family([processes[0].pid]))):.0f} MB")
        wait_until(lambda: not count_waiting(ledger), FILL_WITHIN_S)
        return sorted(memory_mb(pid) for pid in family([processes[0].pid]))
    finally:
        for process in processes:
            children.end_group(process)


def serve_many(ledger: Ground, requests: int, say: Any) -> list[float]:
    """Have the endpoint answer so many requests; return its memory after each tenth of them, in MB."""
    found: list[float] = []
    with ExitStack() as stack:
        endpoint, base = stack.enter_context(serving(ledger, *ENDPOINT))
        stack.enter_context(posting(ledger))
        paths = tuple(f"/credits/usage?limit={LIMIT}&page={page}" for page in range(1, 500))
        asked = Asked(base, make_key(ledger, DEEP), (*paths, *[paths[0]] * 2000))
        done = 0
        while done < requests:
            answers = ask(asked, ledger, endpoint, seconds=20)
            done += int(answers.rate * 20)
            found.append(memory_mb(endpoint.pid))
            say(f"{done:,} requests, endpoint {found[-1]:.0f} MB")
    return found
