"""Which processes run during a fault test, and how are they killed?

All of them are real processes on loopback. A dead one is started again as soon as that is noticed, as a supervisor does.
"""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import psycopg

from tests.faults import rabbitmq
from tests.faults.redis_pair import RedisPair
from tests.matrix.surroundings import configure_pgbouncer, start_pgbouncer
from tests.servers import CHECKOUT, Processes, server_folder, wait_until, with_database
from worker.local import children, postgres
from worker.local.children import Process
from worker.local.valkey import free_port

WORKERS = ("one", "two")
WORKER_OPTIONS = ("--concurrency", "2", "--loglevel", "info")
CLOCK_STEPS_S = ("-3600", "-120", "0", "2", "120", "3600")
"""By how many seconds beat's clock is ahead after a step."""


class Setup(NamedTuple):
    """What a deployment is made of: the broker, PgBouncer before Postgres, and the commit whose code it starts with."""

    broker: str = "redis"
    pgbouncer: bool = False
    upgrade_from: str | None = None


PLAIN = Setup()


class Deployment:
    """All processes of a run. Use it only from the main thread: a child dies with the thread that started it.

    The processes reach Postgres by `pooled_url`, which leads through PgBouncer if there is one; the run itself reaches it
    by `database_url`.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.folder = folder
        self.setup = setup
        self.kills: Counter[str] = Counter()
        self.port = free_port()
        self.on_kill: Callable[[str], None] = lambda _: None
        self.start_servers()
        self.processes = Processes(folder, self.environment())
        if setup.upgrade_from:
            self.processes.checkout = check_out(setup.upgrade_from, folder / "older")
            self.processes.environment = self.environment()
        self.migrate()
        self.running: dict[str, Process] = {}
        self.starts: Counter[str] = Counter()
        self.restart_dead()

    def start_servers(self) -> None:
        self.server_log = (self.folder / "servers.log").open("ab")
        self.start_postgres()
        self.pooled_url = self.database_url
        self.pgbouncer: Process | None = None
        if self.setup.pgbouncer:
            self.pooled_url = configure_pgbouncer(self.folder / "pgbouncer", self.database_url)
            self.pgbouncer = start_pgbouncer(self.folder / "pgbouncer", self.server_log)
        self.redis = RedisPair(self.folder / "redis", self.server_log)
        self.redis_url = self.redis.url
        in_rabbitmq = self.setup.broker == "rabbitmq"
        self.rabbitmq = rabbitmq.start(self.folder / "rabbit", self.server_log) if in_rabbitmq else None
        self.broker_url = self.rabbitmq.url if self.rabbitmq else self.redis_url

    def migrate(self) -> None:
        """Bring the schema up to what the code of the processes needs."""
        command = [sys.executable, "-m", "worker", "migrate"]
        subprocess.run(command, cwd=self.processes.checkout, env=dict(self.processes.environment), check=True)

    def upgrade(self) -> None:
        """Migrate to this checkout's code under load. Processes that are started from now on run it, beside the older."""
        self.processes.checkout = CHECKOUT
        self.processes.environment = self.environment()
        self.migrate()

    def start_postgres(self) -> None:
        self.postgres = postgres.start_postgres(self.folder / "postgres", self.server_log)
        if not hasattr(self, "database_url"):
            with psycopg.connect(self.postgres.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE faults")
        self.database_url = with_database(self.postgres.url, "faults")

    def environment(self) -> Mapping[str, str]:
        ours = {"DATABASE_URL": self.pooled_url, "REDIS_URL": self.redis_url, "CELERY_BROKER_URL": self.broker_url}
        checkout = self.processes.checkout if hasattr(self, "processes") else CHECKOUT
        ours |= {"PYTHONPATH": str(checkout), "USAGE_FEEDS_STATE": str(self.folder / "no-state")}
        return {**os.environ, **ours}

    def restart_dead(self) -> None:
        """Start every process that is not alive."""
        celery = ("-m", "celery", "-A", "worker.tasks")
        commands = {
            **{name: (*celery, "worker", *WORKER_OPTIONS, "-n", f"{name}@%h") for name in WORKERS},
            "beat": (
                str(CHECKOUT / "tests" / "faults" / "moved_clock.py"),
                str(self.folder / "beat-clock"),
                *celery[2:],
                "beat",
                "-s",
                str(self.folder / "beat-schedule"),
            ),
            "endpoint": ("-m", "worker", "serve", "--port", str(self.port)),
        }
        for name, command in commands.items():
            process = self.running.get(name)
            if process is None or process.poll() is not None:
                if process is not None:
                    children.end_group(process)
                self.starts[name] += 1
                self.running[name] = self.processes.start(name, *command)

    def is_ready(self) -> bool:
        """Tell whether the endpoint answers and both workers have printed that they are ready."""
        self.restart_dead()
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/livez", timeout=1):
                pass
        except OSError:
            return False
        return all("ready." in self.processes.output(self.running[name]) for name in WORKERS)

    def kill(self, part: str, choose: Callable[[list[str]], str]) -> None:
        """Kill a part, and start it again. Postgres gets SIGQUIT, all others get SIGKILL.

        Redis can also fail over, and beat's clock can move.

        Args:
            part: A key of `long_run.KILLS`.
            choose: Picks the worker, the process of its pool, or where beat's clock goes.
        """
        name = choose(list(WORKERS)) if part in {"worker", "pool process"} else part
        match part:
            case "pool process":
                if not (pool := pool_pids(self.running[name])):
                    return
                with suppress(ProcessLookupError):
                    os.kill(int(choose([str(pid) for pid in pool])), signal.SIGKILL)
            case "postgres":
                children.stop(self.postgres.process, (signal.SIGQUIT,), within_s=30)
                self.start_postgres()
            case "valkey":
                self.redis.kill_primary()
            case "failover":
                if not self.redis.fail_over():
                    return
            case "beat's clock":
                (self.folder / "beat-clock").write_text(choose(list(CLOCK_STEPS_S)))
            case "pgbouncer":
                if self.pgbouncer is None:
                    return
                children.end_group(self.pgbouncer)
                self.pgbouncer = start_pgbouncer(self.folder / "pgbouncer", self.server_log)
            case _:
                children.end_group(self.running[name])
        self.on_kill(part)
        self.kills[part] += 1

    def count_tracebacks(self) -> Counter[str]:
        """Return the last line of each traceback that the processes printed, and how often it was printed."""
        found: Counter[str] = Counter()
        for log in self.folder.glob("*.log"):
            lines = log.read_text(errors="replace").splitlines()
            for number, line in enumerate(lines):
                if line.startswith("Traceback"):
                    last = next((later for later in lines[number + 1 :] if later[:1] not in {" ", "", "\t"}), "")
                    found[last[:150]] += 1
        return found

    def end(self) -> None:
        """Stop all processes, the servers last."""
        for process in reversed(self.running.values()):
            children.stop(process, (signal.SIGTERM,), within_s=20)
        self.redis.end()
        if self.pgbouncer:
            children.end_group(self.pgbouncer)
        children.stop(self.postgres.process, postgres.SIGNALS, within_s=20)
        postgres.remove_socket_folder(self.postgres.home)
        if self.rabbitmq:
            self.rabbitmq.stop()
        self.server_log.close()


def pool_pids(worker: Process) -> list[int]:
    """Return the ids of the processes in a worker's pool."""
    try:
        return [int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]
    except OSError:
        return []


def check_out(commit: str, folder: Path) -> Path:
    """Put the code of a commit into a folder, and return the folder."""
    packed = subprocess.run(["git", "archive", commit], cwd=CHECKOUT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as files:
        files.extractall(folder, filter="data")
    return folder


@contextmanager
def running_deployment(setup: Setup = PLAIN) -> Iterator[Deployment]:
    """Give a deployment whose processes are all ready, and stop them afterwards."""
    with server_folder() as folder:
        deployment = Deployment(folder, setup)
        try:
            wait_until(deployment.is_ready, within_s=60)
            yield deployment
        finally:
            deployment.end()


def is_met_within(deployment: Deployment, condition: Callable[[], bool], within_s: float) -> bool:
    """Wait until a condition holds; restart dead processes meanwhile. Return False if it does not hold in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        deployment.restart_dead()
        time.sleep(0.2)
    return True
