"""On which servers does the benchmark run?

The servers are durable, unlike those of the tests: fsync, synchronous_commit and the append-only file are on, as in
production. They are embedded, or those at `TEST_DATABASE_URL` (its role may create databases) and `TEST_REDIS_URL` (it is
flushed).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from redis import Redis

from tests.bench.resources import parent_of, process_tree
from tests.faults import rabbitmq
from tests.servers import CHECKOUT, fresh_database, server_folder, template_database, with_database
from worker.local import children, postgres, valkey
from worker.local.children import Process

WORKER_PROCESSES = 2
POSTGRES_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
}
"""The same for ours and for the peers: sized as an operator would, and without a checkpoint during a round."""


class Servers(NamedTuple):
    """The servers, and what one contender uses of them: its own database and its own Redis, both empty.

    `amqp_url` is the URL of RabbitMQ if it is installed. `folder` is for logs.
    """

    server_url: str
    database_url: str
    redis_url: str
    amqp_url: str | None
    folder: Path
    server_pids: frozenset[int]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a contender's processes."""
        ours = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url, "PYTHONPATH": str(CHECKOUT)}
        ours |= {"AMQP_URL": self.amqp_url} if self.amqp_url else {}
        state = {"USAGE_FEEDS_STATE": str(self.folder / "no-state")}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8", **ours, **state}

    def start(self, *command: str, cwd: Path = CHECKOUT) -> Process:
        """Start a process of a contender. Its output is written to `folder`."""
        name = f"{len(list(self.folder.glob('*.log')))}-{Path(command[0]).name}.log"
        with (self.folder / name).open("wb") as output:
            return children.start(command, cwd=cwd, env=self.environment(), output=output)

    @property
    def database(self) -> str:
        """Return the name of the database."""
        return self.database_url.partition("?")[0].rpartition("/")[2]

    def processes(self) -> set[int]:
        """Return the ids of all current processes of Postgres, Redis and RabbitMQ."""
        return process_tree(self.server_pids)


@contextmanager
def running_servers(*, with_rabbitmq: bool) -> Iterator[Servers]:
    """Start the servers, and stop them afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder())
        log = stack.enter_context((folder / "servers.txt").open("wb"))
        server_url = os.environ.get("TEST_DATABASE_URL") or start_postgres(stack, folder, log)
        redis_url = os.environ.get("TEST_REDIS_URL") or start_valkey(stack, folder, log)
        pids = {postgres_process(server_url), redis_process(redis_url)}
        amqp_url = None
        if with_rabbitmq and shutil.which("rabbitmq-server", path=os.environ["PATH"] + ":/usr/sbin"):
            server = rabbitmq.start(folder / "rabbit", log)
            stack.callback(server.stop)
            amqp_url = server.url
            pids.add(server.process.pid)
        yield Servers(server_url, server_url, redis_url, amqp_url, folder, frozenset(pids))


@contextmanager
def new_database(servers: Servers, template: str = "template0", *, flush: bool = True) -> Iterator[Servers]:
    """Give the servers with a new database, a copy of `template`. Redis is flushed unless `flush` is false."""
    with fresh_database(servers.server_url, template) as name, server_folder() as folder:
        if flush:
            with Redis.from_url(servers.redis_url) as redis:
                redis.flushall()
        do_pending_work(servers)
        yield servers._replace(database_url=with_database(servers.server_url, name), folder=folder)


def do_pending_work(servers: Servers) -> None:
    """Make Postgres vacuum and checkpoint now, so that it does not do so during a round."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


@contextmanager
def migrated_database(servers: Servers, *, flush: bool = True) -> Iterator[Servers]:
    """Give the servers with a new database that holds our schema and no events."""
    with template_database(servers.server_url) as template, new_database(servers, template, flush=flush) as own:
        yield own


def start_postgres(stack: ExitStack, folder: Path, log) -> str:
    """Start Postgres from its wheel, and return its URL."""
    server = postgres.start_postgres(folder / "postgres", log, settings=POSTGRES_SETTINGS)
    stack.callback(postgres.remove_socket_folder, server.home)
    stack.callback(children.stop, server.process, postgres.SIGNALS, within_s=30)
    return server.url


def start_valkey(stack: ExitStack, folder: Path, log) -> str:
    """Start Valkey from its wheel, and return its URL."""
    server = valkey.start_valkey(folder / "valkey", log)
    stack.callback(children.stop, server.process, valkey.SIGNALS, within_s=30)
    return server.url


def postgres_process(server_url: str) -> int:
    """Return the id of the process that started all other processes of Postgres. It must run on this machine."""
    with psycopg.connect(server_url) as connection:
        return parent_of(connection.info.backend_pid)


def redis_process(redis_url: str) -> int:
    """Return the id of the process of Redis. It must run on this machine."""
    with Redis.from_url(redis_url) as redis:
        return int(redis.info("server")["process_id"])
