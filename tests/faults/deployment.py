"""What runs, and what is killed?

Every part is a real process on loopback, started again as soon as it is seen to be dead, as any supervisor would.
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

from tests.faults import rabbit
from tests.servers import CHECKOUT, Processes, server_folder, wait_until, with_database
from worker.local import children, postgres, valkey
from worker.local.children import Process
from worker.migrations.runner import migrate
from worker.settings import WorkerSettings

WORKERS = ("one", "two")


class Stage:
    """All processes of a run. Call it from the main thread alone: children die with the thread that forked them."""

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
        self.revive()

    def start_servers(self, broker: str) -> None:
        self.server_log = (self.folder / "servers.log").open("ab")
        self.start_postgres()
        self.start_valkey()
        self.rabbit = rabbit.start(self.folder / "rabbit", self.server_log) if broker == "rabbitmq" else None
        self.broker_url = self.rabbit.url if self.rabbit else self.redis_url

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

    def revive(self) -> None:
        """Start again what is not alive."""
        commands = {
            **{
                name: (
                    "-m",
                    "celery",
                    "-A",
                    "worker.tasks",
                    "worker",
                    "--concurrency",
                    "2",
                    "--loglevel",
                    "info",
                    "-n",
                    f"{name}@%h",
                )
                for name in WORKERS
            },
            "beat": ("-m", "celery", "-A", "worker.tasks", "beat", "-s", str(self.folder / "beat-schedule")),
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
        """Tell whether the endpoint answers and both workers have said that they are ready."""
        self.revive()
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/livez", timeout=1):
                pass
        except OSError:
            return False
        return all("ready." in self.processes.output(self.running[name]) for name in WORKERS)

    def kill(self, sort: str, choose: Callable[[list[str]], str]) -> None:
        """Kill one thing of this sort, by SIGKILL but for Postgres, and start it again."""
        name = choose(list(WORKERS)) if sort in {"worker", "pool process"} else sort
        match sort:
            case "pool process":
                if not (pool := pool_of(self.running[name])):
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
        self.on_kill(sort)
        self.kills[sort] += 1

    def tracebacks(self) -> Counter[str]:
        """Return the last lines of the tracebacks that the processes printed, with how often."""
        found: Counter[str] = Counter()
        for log in self.folder.glob("*.log"):
            lines = log.read_text(errors="replace").splitlines()
            for number, line in enumerate(lines):
                if line.startswith("Traceback"):
                    last = next((one for one in lines[number + 1 :] if one[:1] not in {" ", "", "\t"}), "")
                    found[last[:150]] += 1
        return found

    def end(self) -> None:
        """Stop all, servers last."""
        for process in reversed(self.running.values()):
            children.stop(process, (signal.SIGTERM,), within_s=20)
        children.stop(self.valkey.process, valkey.SIGNALS, within_s=20)
        children.stop(self.postgres.process, postgres.SIGNALS, within_s=20)
        postgres.remove_socket_folder(self.postgres.home)
        if self.rabbit:
            self.rabbit.stop()
        self.server_log.close()


def pool_of(worker: Process) -> list[int]:
    """Return the processes of a worker's pool."""
    try:
        return [int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def stage(broker: str) -> Iterator[Stage]:
    """Give a stage whose processes are all ready, and stop them after."""
    with server_folder() as folder:
        made = Stage(folder, broker)
        try:
            wait_until(made.is_ready, within_s=60)
            yield made
        finally:
            made.end()


def settled(made: Stage, condition: Callable[[], bool], within_s: float) -> bool:
    """Wait until a condition holds, reviving what dies; False where it does not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        made.revive()
        time.sleep(0.2)
    return True
