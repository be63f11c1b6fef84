"""On which servers does the benchmark run?

Durable ones, unlike the tests': fsync, synchronous_commit and an append-only file, as in production. Embedded, or those
that `TEST_DATABASE_URL` (its role may create databases) and `TEST_REDIS_URL` (it will be flushed) lead to.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from redis import Redis

from tests.bench.usage import family, parent_of
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
"""The same for ours and for the peers: a server that somebody has sized, and no checkpoint in the middle of a round."""


class Ground(NamedTuple):
    """The servers, and what one contender gets of them: a database and a Redis of its own, both empty.

    `amqp_url` is RabbitMQ's where it is installed. `folder` is for logs.
    """

    server_url: str
    database_url: str
    redis_url: str
    amqp_url: str | None
    folder: Path
    server_pids: frozenset[int]

    def environment(self) -> dict[str, str]:
        """Return what a contender's processes find in their environment."""
        ours = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url, "PYTHONPATH": str(CHECKOUT)}
        ours |= {"AMQP_URL": self.amqp_url} if self.amqp_url else {}
        state = {"USAGE_FEEDS_STATE": str(self.folder / "no-state")}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8", **ours, **state}

    def start(self, *command: str, cwd: Path = CHECKOUT) -> Process:
        """Start a process of a contender; what it prints is kept in `folder`."""
        name = f"{len(list(self.folder.glob('*.log')))}-{Path(command[0]).name}.log"
        with (self.folder / name).open("wb") as output:
            return children.start(command, cwd=cwd, env=self.environment(), output=output)

    @property
    def database(self) -> str:
        """Return the database's name."""
        return self.database_url.partition("?")[0].rpartition("/")[2]

    def servers(self) -> set[int]:
        """Return all processes of Postgres, Redis and RabbitMQ as of now."""
        return family(self.server_pids)


@contextmanager
def servers(*, with_rabbit: bool) -> Iterator[Ground]:
    """Start the servers, and stop them after."""
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder())
        log = stack.enter_context((folder / "servers.txt").open("wb"))
        server_url = os.environ.get("TEST_DATABASE_URL") or start_postgres(stack, folder, log)
        redis_url = os.environ.get("TEST_REDIS_URL") or start_valkey(stack, folder, log)
        pids = {postmaster(server_url), redis_process(redis_url)}
        amqp_url = None
        if with_rabbit and shutil.which("rabbitmq-server", path=os.environ["PATH"] + ":/usr/sbin"):
            made = rabbitmq.start(folder / "rabbit", log)
            stack.callback(made.stop)
            amqp_url = made.url
            pids.add(made.process.pid)
        yield Ground(server_url, server_url, redis_url, amqp_url, folder, frozenset(pids))


@contextmanager
def cleared(ground: Ground, template: str = "template0", *, flush: bool = True) -> Iterator[Ground]:
    """Give a ground whose database is new, a copy of `template`, and whose Redis is empty unless told otherwise."""
    with fresh_database(ground.server_url, template) as name, server_folder() as folder:
        if flush:
            with Redis.from_url(ground.redis_url) as redis:
                redis.flushall()
        settle_down(ground)
        yield ground._replace(database_url=with_database(ground.server_url, name), folder=folder)


def settle_down(ground: Ground) -> None:
    """Have Postgres do now what it would else do in the middle of a round."""
    with psycopg.connect(ground.database_url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


@contextmanager
def migrated(ground: Ground, *, flush: bool = True) -> Iterator[Ground]:
    """Give a ground whose database holds our schema, to be filled."""
    with template_database(ground.server_url) as template, cleared(ground, template, flush=flush) as made:
        yield made


def start_postgres(stack: ExitStack, folder: Path, log) -> str:
    """Start Postgres from the wheel."""
    server = postgres.start_postgres(folder / "postgres", log, settings=POSTGRES_SETTINGS)
    stack.callback(postgres.remove_socket_folder, server.home)
    stack.callback(children.stop, server.process, postgres.SIGNALS, within_s=30)
    return server.url


def start_valkey(stack: ExitStack, folder: Path, log) -> str:
    """Start Valkey from the wheel."""
    server = valkey.start_valkey(folder / "valkey", log)
    stack.callback(children.stop, server.process, valkey.SIGNALS, within_s=30)
    return server.url


def postmaster(server_url: str) -> int:
    """Return the process that all of Postgres descends from, on this machine."""
    with psycopg.connect(server_url) as connection:
        return parent_of(connection.info.backend_pid)


def redis_process(redis_url: str) -> int:
    """Return Redis's process, on this machine."""
    with Redis.from_url(redis_url) as redis:
        return int(redis.info("server")["process_id"])
