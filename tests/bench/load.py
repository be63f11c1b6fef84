"""How many requests a second does a server answer?"""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.bench.environment import wrk
from tests.bench.ground import Ground
from tests.bench.usage import cpu_s, family
from worker.local.children import Process

SERVER_CORE, OTHERS_CORE = 0, 1
"""Where there are two cores the server has one, all else the other."""


class Asked(NamedTuple):
    """What wrk asks, one after the other: paths, each for every organisation where some are named."""

    base: str
    key: str
    paths: tuple[str, ...]
    org_ids: tuple[str, ...] = ("",)
    connections: int = 32


class Answers(NamedTuple):
    """What came of it; CPU in µs a request, of the server's own processes and of Postgres and Redis."""

    rate: float
    own_cpu_us: float
    server_cpu_us: float
    p50_ms: float
    p99_ms: float
    bytes_each: float


def pin(pids: set[int], cores: set[int]) -> None:
    """Keep processes on some cores, where there are two."""
    if (os.cpu_count() or 1) < 2:
        return
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)


def ask(asked: Asked, ground: Ground, server: Process, seconds: int) -> Answers:
    """Ask for so long. Raises AssertionError where anything but 200 came."""
    try:
        pin(family([server.pid]), {SERVER_CORE})
        pin(ground.servers(), {OTHERS_CORE})
        before = cpu_s(family([server.pid])), cpu_s(ground.servers())
        found = run_wrk(asked, seconds)
        after = cpu_s(family([server.pid])), cpu_s(ground.servers())
    finally:  # what Postgres starts later inherits its core
        pin(ground.servers(), os.sched_getaffinity(0))
    own_us, servers_us = ((late - early) * 1e6 / found["requests"] for early, late in zip(before, after, strict=True))
    each = found["bytes"] / found["requests"]
    return Answers(found["requests"] / found["seconds"], own_us, servers_us, found["p50_ms"], found["p99_ms"], each)


def run_wrk(asked: Asked, seconds: int) -> dict[str, float]:
    """Run wrk, and return what `requests.lua` says."""
    script = Path(__file__).with_name("requests.lua")
    command = [wrk(), "-t1", f"-c{asked.connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    lines = "".join(f"{path} {org_id}\n" for org_id in asked.org_ids for path in asked.paths)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requests:
        requests.write(lines)
        requests.flush()
        told = {"KEY": asked.key, "REQUESTS": requests.name}
        prefix = ["taskset", "-c", str(OTHERS_CORE)] if (os.cpu_count() or 1) > 1 else []
        done = subprocess.run(
            [*prefix, *command, asked.base], env={**os.environ, **told}, capture_output=True, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert not found["failed"], (
        f"{found['failed']:.0f} of {found['requests']:.0f} requests failed at {asked.base}{asked.paths[0]}"
    )
    return found
