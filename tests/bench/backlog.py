"""How fast does a contender work off what waits?

The backlog is filled before the clock starts. The clock runs from the first sign of work to the last event, so that nobody
is charged for starting up.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tests.bench.ground import Ground
from tests.bench.usage import cpu_s, family
from tests.servers import wait_until
from worker.local import children
from worker.local.children import Process

LOOK_EVERY_S = 0.02
START_WITHIN_S = 90
STUCK_S = 60


class Contender(Protocol):
    """One way of working off events.

    `fill` puts so many events where they wait; `start` begins the work, and returns the processes that do it;
    `left` says how many events are still to be done, cheaply, as it is asked 50 times a second; `check` raises
    unless every event was done as it should be.
    """

    name: str
    events: int

    def fill(self, ground: Ground, events: int) -> None: ...

    def start(self, ground: Ground, events: int) -> Sequence[Process]: ...

    def left(self, ground: Ground) -> int: ...

    def check(self, ground: Ground, events: int) -> None: ...


class Run(NamedTuple):
    """What one round of one contender came to; CPU in µs an event, of its own processes and of the servers."""

    rate: float
    own_cpu_us: float
    server_cpu_us: float
    seconds: float


def run(contender: Contender, ground: Ground) -> Run:
    """Run one round on a cleared ground, and check what came of it."""
    contender.fill(ground, contender.events)
    processes = contender.start(ground, contender.events)
    try:
        made = clock(contender, ground, processes)
        contender.check(ground, contender.events)
        return made
    finally:
        for process in processes:
            children.end_group(process)


def clock(contender: Contender, ground: Ground, processes: Sequence[Process]) -> Run:
    """Watch the backlog go."""

    def began() -> bool:
        ended = [process.returncode for process in processes if process.poll()]
        assert not ended, f"{contender.name} ended with {ended}: see {ground.folder}"
        return contender.left(ground) < contender.events

    wait_until(began, START_WITHIN_S)
    first_cpu = cpu_so_far(ground, processes)
    first_left, first_at = contender.left(ground), time.perf_counter()
    left, changed_at = first_left, first_at
    while left:
        time.sleep(LOOK_EVERY_S)
        now_left, now = contender.left(ground), time.perf_counter()
        if now_left != left:
            left, changed_at = now_left, now
        assert now - changed_at < STUCK_S, f"{contender.name} is stuck with {left} left: see {ground.folder}"
    cpu = cpu_so_far(ground, processes)
    done, seconds = first_left, changed_at - first_at
    assert done > contender.events / 4, f"{contender.name} was seen too late: give it more events"
    own_us, servers_us = ((after - before) * 1e6 / done for before, after in zip(first_cpu, cpu, strict=True))
    return Run(done / seconds, own_us, servers_us, seconds)


def cpu_so_far(ground: Ground, processes: Sequence[Process]) -> tuple[float, float]:
    """Return the CPU time of a contender's own processes and of the servers, in seconds."""
    return cpu_s(family(process.pid for process in processes)), cpu_s(ground.servers())
