"""Which processes run during a fault test, and how are they killed?

All of them are real processes on loopback. A dead one is started again as soon as that is noticed, as a supervisor does.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import psycopg

from tests.faults import rabbitmq
from tests.servers import CHECKOUT, Processes, server_folder, wait_until, with_database
from worker.local import children, postgres, valkey
from worker.local.children import Process
from worker.migrations.runner import migrate
from worker.settings import WorkerSettings

WORKERS = ("one", "two")
WORKER_OPTIONS = ("--concurrency", "2", "--loglevel", "info")


class Deployment:
    """All processes of a run. Use it only from the main thread: a child dies with the thread that started it."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.port = valkey.free_port()
        self.on_kill: Callable[[str], None] = lambda _: None
        self.start_servers(broker)
        with psycopg.connect(self.database_url) as connection:
            migrate(connection, WorkerSettings())
        self.processes = Processes(folder, self.environment())
        self.running: dict[str, Process] = {}
        self.starts: Counter[str] = Counter()
        self.restart_dead()

    def start_servers(self, broker: str) -> None:
        self.server_log = (self.folder / "servers.log").open("ab")
        self.start_postgres()
        self.start_valkey()
        self.rabbitmq = rabbitmq.start(self.folder / "rabbit", self.server_log) if broker == "rabbitmq" else None
        self.broker_url = self.rabbitmq.url if self.rabbitmq else self.redis_url

    def start_postgres(self) -> None:
        self.postgres = postgres.start_postgres(self.folder / "postgres", self.server_log)
        if not hasattr(self, "database_url"):
            with psycopg.connect(self.postgres.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE faults")
        self.database_url = with_database(self.postgres.url, "faults")

    def start_valkey(self) -> None:
        self.valkey = valkey.start_valkey(self.folder / "valkey", self.server_log)
        self.redis_url = self.valkey.url

    def environment(self) -> Mapping[str, str]:
        ours = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url, "CELERY_BROKER_URL": self.broker_url}
        ours |= {"PYTHONPATH": str(CHECKOUT), "USAGE_FEEDS_STATE": str(self.folder / "no-state")}
        return {**os.environ, **ours}

    def restart_dead(self) -> None:
        """Start every process that is not alive."""
        celery = ("-m", "celery", "-A", "worker.tasks")
        commands = {
            **{name: (*celery, "worker", *WORKER_OPTIONS, "-n", f"{name}@%h") for name in WORKERS},
            "beat": (*celery, "beat", "-s", str(self.folder / "beat-schedule")),
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

        Args:
            part: A key of `long_run.KILLS`.
            choose: Picks the worker, or the process of its pool.
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
                os.kill(self.valkey.process.pid, signal.SIGKILL)
                children.end_group(self.valkey.process)
                self.start_valkey()
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
        children.stop(self.valkey.process, valkey.SIGNALS, within_s=20)
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


@contextmanager
def running_deployment(broker: str) -> Iterator[Deployment]:
    """Give a deployment whose processes are all ready, and stop them afterwards."""
    with server_folder() as folder:
        deployment = Deployment(folder, broker)
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
