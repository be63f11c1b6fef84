"""What does one process of the write side hold open?

Each thing is opened when it is first used, so after Celery's fork, and stays open for the life of the process.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psycopg
from psycopg import Connection
from redis import Redis

from feeds.cached import writer
from feeds.cached.worker_connection import WorkerConnection
from feeds.database import connect
from feeds.schema import Ledger, UnusableSetup, check_ledger
from worker.intake import counters
from worker.intake.streams import connect as connect_streams
from worker.ledger.batch import Posted
from worker.settings import worker_settings

CONNECT_TIMEOUT_S = 5


class Database:
    """The process's connection to Postgres, reopened on next use if it was lost.

    Not a pool: psycopg's tries ever more rarely while the server is away, so minutes would pass after its return.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.idle: Connection[Any] | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """Lend the connection; it is closed if the work fails. Raises psycopg.OperationalError if it cannot open."""
        connection, self.idle = self.idle, None
        if connection is not None and not is_usable(connection):
            connection.close()
            connection = None
        if connection is None:
            connection = connect(self.url, CONNECT_TIMEOUT_S)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self.idle = connection

    def close(self) -> None:
        """Close the connection if it is not lent."""
        if self.idle is not None:
            self.idle.close()
            self.idle = None


def is_usable(connection: Connection[Any]) -> bool:
    """Tell whether an idle connection is still open, without a round trip.

    The server sends nothing to an idle connection before it closes it, for example because of idle_session_timeout.
    """
    if connection.closed:
        return False
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return not waiting.poll(0)


@cache
def database() -> Database:
    """Return the process's connection to Postgres."""
    return Database(require_url(worker_settings().database_url, "DATABASE_URL"))


@cache
def streams() -> Redis:
    """Return the client of the streams' Redis."""
    return connect_streams(require_url(worker_settings().redis_url, "REDIS_URL"))


@cache
def feeds_redis() -> WorkerConnection:
    """Return the connection to the feeds' Redis, for one thread of this process."""
    connection = WorkerConnection(require_url(worker_settings().feeds_redis_url, "FEEDS_REDIS_URL"))
    connection.note_epoch(ledger().epoch, since=ledger().read_at)
    return connection


def publish(connection: Connection[Any], posted: Posted, is_repeat: bool) -> None:  # noqa: FBT001
    """Put committed movements into the cached feeds; for a repeat, drop the feeds of its organisations instead."""
    repeated = posted.org_ids if is_repeat else ()
    counters.note_published(writer.publish(feeds_redis(), connection, posted.movements, repeated, posted.revisions))


@cache
def ledger() -> Ledger:
    """Return the facts of the ledger, as they were when this process first read them.

    Raises UnusableSetup unless the ledger exists and agrees with the settings.
    """
    settings = worker_settings()
    require_url(settings.redis_url, "REDIS_URL")
    url = require_url(settings.database_url, "DATABASE_URL")
    try:
        with connect(url, CONNECT_TIMEOUT_S) as connection:
            return check_ledger(connection, settings)
    except psycopg.OperationalError as error:
        raise UnusableSetup(f"Postgres cannot be reached, check DATABASE_URL: {str(error).splitlines()[0]}") from None
    except psycopg.Error as error:
        problem = error.diag.message_primary or type(error).__name__
        raise UnusableSetup(
            f"Postgres refused to read the ledger, check the role in DATABASE_URL: {problem}."
        ) from None


def require_url(url: str, variable: str) -> str:
    """Return the URL, or raise UnusableSetup if there is none."""
    if not url:
        raise UnusableSetup(f"{variable} is not set and no `usage-feeds up` is running: set it, or start one.")
    return url
