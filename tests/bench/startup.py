"""How long does `up` take until it serves its first page, if its data exists already?"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

from tests.bench.usage_feeds import python
from tests.servers import CHECKOUT, wait_until
from worker.local import children
from worker.local.children import Process
from worker.local.valkey import free_port

WITHIN_S = 60


def measure_startup(times: int) -> list[float]:
    """Start `up` several times on the same data; return how many seconds each start took until a page was served."""
    state = Path(tempfile.mkdtemp(prefix="usage-feeds-bench-"))
    state.chmod(0o711)
    port = free_port()
    try:
        key = prepare(state, port)
        return [time_once(state, port, key) for _ in range(times)]
    finally:
        shutil.rmtree(state)


def prepare(state: Path, port: int) -> str:
    """Run `up` once, so that its data exists, and return a key."""
    process = start_up(state, port)
    try:
        wait_until(lambda: command(state, "health").returncode == 0, WITHIN_S)
        return command(state, "keys", "create", "--org", "org_a").stdout.split()[-1]
    finally:
        children.stop(process, (signal.SIGTERM,), within_s=60)


def time_once(state: Path, port: int, key: str) -> float:
    """Return how many seconds `up` takes until a page is served."""
    began = time.perf_counter()
    process = start_up(state, port)
    try:
        wait_until(lambda: is_served(port, key), WITHIN_S)
        return time.perf_counter() - began
    finally:
        children.stop(process, (signal.SIGTERM,), within_s=60)


def start_up(state: Path, port: int) -> Process:
    """Start `up` with this state folder."""
    return children.start(
        python("-m", "worker", "--state", str(state), "up", "--port", str(port)),
        cwd=CHECKOUT,
        env=environment(),
        output=subprocess.DEVNULL,
        death_signal=signal.SIGTERM,
    )


def command(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command against a running `up`."""
    program = python("-m", "worker", "--state", str(state), *arguments)
    return subprocess.run(program, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    """Return the environment variables of this process without the servers: `up` starts its own."""
    return {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}


def is_served(port: int, key: str) -> bool:
    try:
        with urlopen(
            Request(f"http://127.0.0.1:{port}/credits/usage", headers={"Authorization": f"Bearer {key}"}), timeout=1
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
