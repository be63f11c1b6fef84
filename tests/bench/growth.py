"""Is a ledger of ten million movements as fast as one of a hundred thousand?

A real worker fills the large ledger through the streams. Then events are posted in turn to it and to a small ledger, in
another database of the same server.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import psycopg
from redis import Redis

from tests.bench import backlog
from tests.bench.figures import Figure, Report, summarise
from tests.bench.latency import running_worker
from tests.bench.load import Requests, send_requests
from tests.bench.page_depth import LARGE_ORGANISATION, LIMIT, Depth, fill_large_organisation, measure_depth
from tests.bench.reading import ENDPOINT, make_key, running_server
from tests.bench.resources import memory_mb, process_tree
from tests.bench.servers import Servers, do_pending_work, migrated_database
from tests.bench.sizes import Sizes, measure_sizes
from tests.bench.usage_feeds import UsageFeeds, add, count_waiting, grant_all, start_worker, usages, verify
from tests.servers import wait_until
from worker.local import children

ORGANISATIONS = 1000
SMALL = 100_000
EVENTS = 60_000
CHUNK = 100_000
FILL_WITHIN_S = 7200


class Growth(NamedTuple):
    """Figures of the small and the large ledger: events a second, pages from Postgres, bytes, memory in MB."""

    movements: int
    small_rate: Figure
    large_rate: Figure
    small_pages: list[Depth]
    large_pages: list[Depth]
    sizes: Sizes
    verify_s: float
    worker_mb: list[float]
    endpoint_mb: list[float]


def measure_growth(servers: Servers, movements: int, requests: int, rounds: int, report: Report) -> Growth:
    """Fill a large ledger, and measure it and a small one in turn.

    Args:
        servers: The servers.
        movements: How many movements the large ledger gets.
        requests: How many requests the endpoint answers.
        rounds: How often a backlog is posted to each ledger.
        report: Prints progress.
    """
    with small_ledger(servers, flush=True) as large:
        worker_mb = fill(large, movements, report)
        do_pending_work(large)
        with small_ledger(servers, flush=False) as small:
            small_rate, large_rate = run_rounds(small, large, rounds, report)
            small_pages, large_pages = measure_depth(small, 400), measure_depth(large, 400)
            verify(small)
        endpoint_mb = serve_many(large, requests, report)
        began = time.perf_counter()
        found = verify(large)
        verify_s = time.perf_counter() - began
        sizes = measure_sizes(large)
    return Growth(
        found["movements"], small_rate, large_rate, small_pages, large_pages, sizes, verify_s, worker_mb, endpoint_mb
    )


@contextmanager
def small_ledger(servers: Servers, *, flush: bool) -> Iterator[Servers]:
    """Give a small ledger: many organisations that only have a grant, and one with many movements."""
    with migrated_database(servers, flush=flush) as ledger:
        grant_all(ledger, ORGANISATIONS)
        fill_large_organisation(ledger, SMALL)
        do_pending_work(ledger)
        yield ledger


def run_rounds(small: Servers, large: Servers, rounds: int, report: Report) -> tuple[Figure, Figure]:
    """Return how fast a backlog is posted to the small and to the large ledger."""
    runs: dict[str, list[backlog.Run]] = {"small": [], "large": []}
    for number in range(1, rounds + 1):
        for name, ledger in (("small", small), ("large", large)):
            run = post_backlog(ledger)
            runs[name].append(run)
            report(f"round {number}: {name}: {run.rate:,.0f}/s, {run.own_cpu_us:.1f} + {run.server_cpu_us:.1f} µs")
    small_rate, large_rate = (summarise([run.rate for run in of_name]) for of_name in runs.values())
    return small_rate, large_rate


def post_backlog(ledger: Servers) -> backlog.Run:
    """Let a worker post a backlog, and return the figures."""
    contender = UsageFeeds("growth", ORGANISATIONS, EVENTS)
    contender.fill(ledger, EVENTS)
    processes = contender.start(ledger, EVENTS)
    try:
        return backlog.measure(contender, ledger, processes)
    finally:
        for process in processes:
            children.end_group(process)


def fill(ledger: Servers, movements: int, report: Report) -> list[float]:
    """Let a worker post until the ledger has so many movements; return the memory of its processes at the end, in MB."""
    with psycopg.connect(ledger.database_url) as connection:
        [(existing,)] = connection.execute("SELECT count(*) FROM movements").fetchall()
    processes = start_worker(ledger)
    try:
        with Redis.from_url(ledger.redis_url) as redis:
            for done in range(existing, movements, CHUNK):
                wait_until(lambda: count_waiting(ledger) < CHUNK, FILL_WITHIN_S)
                add(redis, usages(ORGANISATIONS, min(CHUNK, movements - done)))
                if done // CHUNK % 10 == 0:
                    report(f"{done:,} movements, worker {max(map(memory_mb, process_tree([processes[0].pid]))):.0f} MB")
        wait_until(lambda: not count_waiting(ledger), FILL_WITHIN_S)
        return sorted(memory_mb(pid) for pid in process_tree([processes[0].pid]))
    finally:
        for process in processes:
            children.end_group(process)


def serve_many(ledger: Servers, number: int, report: Report) -> list[float]:
    """Let the endpoint answer so many requests; return its memory after each 20 seconds of them, in MB."""
    found: list[float] = []
    with ExitStack() as stack:
        endpoint, base = stack.enter_context(running_server(ledger, *ENDPOINT))
        stack.enter_context(running_worker(ledger))
        paths = tuple(f"/credits/usage?limit={LIMIT}&page={page}" for page in range(1, 500))
        requests = Requests(base, make_key(ledger, LARGE_ORGANISATION), (*paths, *[paths[0]] * 2000))
        done = 0
        while done < number:
            answers = send_requests(requests, ledger, endpoint, seconds=20)
            done += int(answers.rate * 20)
            found.append(memory_mb(endpoint.pid))
            report(f"{done:,} requests, endpoint {found[-1]:.0f} MB")
    return found
