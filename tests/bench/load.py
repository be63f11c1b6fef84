"""How many requests a second does a server answer?"""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.bench.environment import wrk
from tests.bench.resources import cpu_s, process_tree
from tests.bench.servers import Servers
from worker.local.children import Process

SERVER_CORE, OTHERS_CORE = 0, 1
"""If there are two cores or more, the measured server gets the first, and all other processes get the second."""


class Requests(NamedTuple):
    """What wrk requests, in turn: each path, for each organisation if organisations are named."""

    base: str
    key: str
    paths: tuple[str, ...]
    org_ids: tuple[str, ...] = ("",)
    connections: int = 32


class Answers(NamedTuple):
    """How the server answered. CPU is in µs a request: of the measured server, and of Postgres and Redis."""

    rate: float
    own_cpu_us: float
    server_cpu_us: float
    p50_ms: float
    p99_ms: float
    bytes_each: float


def pin(pids: set[int], cores: set[int]) -> None:
    """Bind processes to some cores, if there are two or more."""
    if (os.cpu_count() or 1) < 2:
        return
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)


def send_requests(requests: Requests, servers: Servers, server: Process, seconds: int) -> Answers:
    """Send requests to a server for so many seconds.

    Raises:
        AssertionError: A request was not answered with 200.
    """
    try:
        pin(process_tree([server.pid]), {SERVER_CORE})
        pin(servers.processes(), {OTHERS_CORE})
        before = cpu_s(process_tree([server.pid])), cpu_s(servers.processes())
        found = run_wrk(requests, seconds)
        after = cpu_s(process_tree([server.pid])), cpu_s(servers.processes())
    finally:  # a process that Postgres starts later inherits its cores
        pin(servers.processes(), os.sched_getaffinity(0))
    own_us, servers_us = ((late - early) * 1e6 / found["requests"] for early, late in zip(before, after, strict=True))
    each = found["bytes"] / found["requests"]
    return Answers(found["requests"] / found["seconds"], own_us, servers_us, found["p50_ms"], found["p99_ms"], each)


def run_wrk(requests: Requests, seconds: int) -> dict[str, float]:
    """Run wrk, and return the figures that `requests.lua` prints."""
    script = Path(__file__).with_name("requests.lua")
    command = [wrk(), "-t1", f"-c{requests.connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    lines = "".join(f"{path} {org_id}\n" for org_id in requests.org_ids for path in requests.paths)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(lines)
        file.flush()
        variables = {"KEY": requests.key, "REQUESTS": file.name}
        prefix = ["taskset", "-c", str(OTHERS_CORE)] if (os.cpu_count() or 1) > 1 else []
        done = subprocess.run(
            [*prefix, *command, requests.base],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert not found["failed"], (
        f"{found['failed']:.0f} of {found['requests']:.0f} requests failed at {requests.base}{requests.paths[0]}"
    )
    return found
