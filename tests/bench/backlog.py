"""How fast does a contender work through a backlog?

The backlog is filled before the clock starts. The clock runs from the first sign of work to the last event, so that the
time to start a contender is not counted.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tests.bench.resources import cpu_s, process_tree
from tests.bench.servers import Servers
from tests.servers import wait_until
from worker.local import children
from worker.local.children import Process

POLL_EVERY_S = 0.02
START_WITHIN_S = 90
STUCK_S = 60


class Contender(Protocol):
    """One way to process events.

    `fill` adds so many events to the backlog. `start` begins the work, and returns the processes that do it.
    `count_left` returns how many events are left; it must be cheap, because it is called 50 times a second. `check` raises
    unless every event was processed correctly.
    """

    name: str
    events: int

    def fill(self, servers: Servers, events: int) -> None: ...

    def start(self, servers: Servers, events: int) -> Sequence[Process]: ...

    def count_left(self, servers: Servers) -> int: ...

    def check(self, servers: Servers, events: int) -> None: ...


class Run(NamedTuple):
    """The figures of one round of one contender: events a second, and CPU in µs an event.

    `own_cpu_us` is of the contender's processes, `server_cpu_us` of the servers.
    """

    rate: float
    own_cpu_us: float
    server_cpu_us: float
    seconds: float


def run(contender: Contender, servers: Servers) -> Run:
    """Run one round on empty servers, and check its result."""
    contender.fill(servers, contender.events)
    processes = contender.start(servers, contender.events)
    try:
        measured = measure(contender, servers, processes)
        contender.check(servers, contender.events)
        return measured
    finally:
        for process in processes:
            children.end_group(process)


def measure(contender: Contender, servers: Servers, processes: Sequence[Process]) -> Run:
    """Wait until nothing of the backlog is left, and return the figures."""

    def has_begun() -> bool:
        ended = [process.returncode for process in processes if process.poll()]
        assert not ended, f"{contender.name} ended with {ended}: see {servers.folder}"
        return contender.count_left(servers) < contender.events

    wait_until(has_begun, START_WITHIN_S)
    first_cpu = cpu_so_far(servers, processes)
    first_left, first_at = contender.count_left(servers), time.perf_counter()
    left, changed_at = first_left, first_at
    while left:
        time.sleep(POLL_EVERY_S)
        now_left, now = contender.count_left(servers), time.perf_counter()
        if now_left != left:
            left, changed_at = now_left, now
        assert now - changed_at < STUCK_S, f"{contender.name} is stuck with {left} events left: see {servers.folder}"
    cpu = cpu_so_far(servers, processes)
    done, seconds = first_left, changed_at - first_at
    assert done > contender.events / 4, f"{contender.name} was seen too late: give it more events"
    own_us, servers_us = ((after - before) * 1e6 / done for before, after in zip(first_cpu, cpu, strict=True))
    return Run(done / seconds, own_us, servers_us, seconds)


def cpu_so_far(servers: Servers, processes: Sequence[Process]) -> tuple[float, float]:
    """Return the CPU time of a contender's own processes and of the servers, in seconds."""
    return cpu_s(process_tree(process.pid for process in processes)), cpu_s(servers.processes())
