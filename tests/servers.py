"""Which servers and processes do the tests use?

The embedded servers, started once per run; or the servers at `TEST_DATABASE_URL` (it names a database, and its role may
create databases) and `TEST_REDIS_URL` (the tests flush it). A missing server fails the run.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar
from urllib.request import urlopen

import psycopg
from psycopg import sql

from worker.local import children
from worker.local.children import Process
from worker.local.postgres import SIGNALS as POSTGRES_SIGNALS
from worker.local.postgres import UNSAFE_BUT_FAST, remove_socket_folder, start_postgres
from worker.local.valkey import SIGNALS as VALKEY_SIGNALS
from worker.local.valkey import free_port, start_valkey
from worker.migrations.runner import migrate
from worker.settings import WorkerSettings

CHECKOUT = Path(__file__).parents[1]
database_numbers = count(1)
T = TypeVar("T")


def wait_until(condition: Callable[[], T], within_s: float = 10.0) -> T:
    """Return the condition's first true value; fail if there is none within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition did not hold within {within_s} s: {condition}"
        time.sleep(0.02)
    return value


@contextmanager
def server_folder() -> Iterator[Path]:
    """Give a new folder that another account can pass through. It cannot pass through pytest's own folders."""
    folder = Path(tempfile.mkdtemp(prefix="usage-feeds-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Give the URL of a Postgres whose role may create databases."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with server_folder() as folder, (folder / "log").open("wb") as log:
        try:
            server = start_postgres(folder / "postgres", log, settings={**UNSAFE_BUT_FAST, "max_connections": "200"})
        except BaseException:
            print((folder / "log").read_text(), file=sys.stderr)
            raise
        try:
            yield server.url
        finally:
            children.stop(server.process, POSTGRES_SIGNALS, within_s=10)
            remove_socket_folder(server.home)


@contextmanager
def valkey_server() -> Iterator[str]:
    """Give the URL of a Valkey or Redis that may be flushed."""
    if given := os.environ.get("TEST_REDIS_URL"):
        yield given
        return
    with server_folder() as folder, (folder / "log").open("wb") as log:
        server = start_valkey(folder / "valkey", log)
        try:
            yield server.url
        finally:
            children.stop(server.process, VALKEY_SIGNALS, within_s=10)


def with_database(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    head, question_mark, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}{question_mark}{query}"


@contextmanager
def template_database(server_url: str) -> Iterator[str]:
    """Give the name of a migrated database to clone. No connection to it may be open."""
    with fresh_database(server_url) as name:
        with psycopg.connect(with_database(server_url, name), autocommit=True) as connection:
            migrate(connection, WorkerSettings())
        yield name


@contextmanager
def fresh_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """Give the name of a new database, a clone of `template`, and drop it afterwards."""
    name = f"usage_feeds_test_{os.getpid()}_{next(database_numbers)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield name
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(drop.format(sql.Identifier(name)))


class Processes:
    """Real child processes of one test, of the code in `checkout`, by `python`. Their output is printed when the test fails."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.checkout = CHECKOUT
        self.python = sys.executable
        self.started: list[tuple[str, Process, Path]] = []

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Process:
        """Start `python COMMAND…` from the checkout, in a session of its own.

        Args:
            name: What the process is called in the printed output.
            command: The arguments of Python.
            env: Variables that are added to the test's environment.
        """
        log = self.folder / f"{len(self.started)}-{name}.log"
        with log.open("wb") as output:
            process = children.start(
                [self.python, *command], cwd=self.checkout, env={**self.environment, **(env or {})}, output=output
            )
        self.started.append((name, process, log))
        return process

    def command(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command of `usage-feeds`."""
        return self.start(arguments[0], "-m", "worker", *arguments, env=env)

    def worker(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a Celery worker with two pool processes, and wait until it is ready."""
        options = ("-A", "worker.tasks", "worker", "--concurrency", "2", "--loglevel", "info", "--without-mingle")
        process = self.start("worker", "-m", "celery", *options, *arguments, env=env)
        self.wait_for_line(process, " ready.", within_s=30)
        return process

    def schedule(self, env: Mapping[str, str] | None = None) -> Process:
        """Start Celery beat."""
        file = str(self.folder / f"{len(self.started)}-beat-schedule")
        return self.start("schedule", "-m", "celery", "-A", "worker.tasks", "beat", "-s", file, env=env)

    def endpoint(self, env: Mapping[str, str] | None = None) -> str:
        """Start the endpoint on a free port, wait until it answers, and return its base URL."""
        port = free_port()
        process = self.command("serve", "--port", str(port), env=env)
        base = f"http://127.0.0.1:{port}"

        def is_answering() -> bool:
            assert process.poll() is None, f"the endpoint ended with code {process.returncode}:\n{self.output(process)}"
            try:
                with urlopen(f"{base}/livez", timeout=1) as answer:
                    return answer.status == 200
            except OSError:
                return False

        wait_until(is_answering, within_s=30)
        return base

    def output(self, process: Process) -> str:
        """Return what a process has printed so far."""
        return next(log for _, started, log in self.started if started is process).read_text(errors="replace")

    def wait_for_line(self, process: Process, words: str, within_s: float = 10.0) -> None:
        """Wait until a process has printed these words."""

        def has_printed() -> bool:
            if words in self.output(process):
                return True
            assert process.poll() is None, f"the process ended with code {process.returncode}:\n{self.output(process)}"
            return False

        wait_until(has_printed, within_s)

    def stop(self, process: Process, *signals: signal.Signals, within_s: float = 20.0) -> int:
        """Stop a process with SIGTERM, or with the given signals one after the other, and return its exit code."""
        children.stop(process, signals or (signal.SIGTERM,), within_s)
        return process.returncode

    def kill(self, process: Process) -> None:
        """Kill a process and its whole group, as a crash of the machine would."""
        children.end_group(process)

    def end(self) -> None:
        """Stop all processes, the last started first, and print their output."""
        for name, process, log in reversed(self.started):
            children.stop(process, (signal.SIGTERM,), within_s=10)
            print(f"--- {name}, ended with code {process.returncode}\n{log.read_text(errors='replace')}")
