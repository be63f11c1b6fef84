"""What does a process of the write side hold open?

Each is opened when it is first asked for, so after Celery's fork, and kept for the process's life.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psycopg
from psycopg import Connection
from redis import Redis

from feeds.cached.worker_connection import WorkerConnection
from feeds.cached.writer import show as cache_feeds
from feeds.schema import Ledger, UnusableSetup, check_ledger
from worker.intake import counters as counts
from worker.intake import streams as event_streams
from worker.ledger.write import Posted
from worker.settings import worker_settings

CONNECT_TIMEOUT_S = 5


class Database:
    """The connection of this process to Postgres, made anew when it is next asked for where it was lost.

    Not a pool: psycopg's tries ever more rarely while the server is away, so that minutes pass after its return.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.kept: Connection[Any] | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """Give the connection; one whose work has failed is not used again. Raises psycopg.OperationalError."""
        connection, self.kept = self.kept, None
        if connection is None or connection.closed:
            connection = psycopg.connect(self.url, **connect_options())
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self.kept = connection

    def close(self) -> None:
        """Give the connection back."""
        if self.kept is not None:
            self.kept.close()
            self.kept = None


@cache
def database() -> Database:
    """Return the database of this process."""
    return Database(required(worker_settings().database_url, "DATABASE_URL"))


def connect_options() -> dict[str, Any]:
    """Return how the worker connects: autocommit, and nothing prepared, so that PgBouncer may sit between."""
    return {"autocommit": True, "prepare_threshold": None, "connect_timeout": CONNECT_TIMEOUT_S}


@cache
def streams() -> Redis:
    """Return the streams' Redis."""
    return event_streams.connect(required(worker_settings().redis_url, "REDIS_URL"))


@cache
def feeds_connection() -> WorkerConnection:
    """Return the connection to the feeds' Redis: for one thread of this process."""
    link = WorkerConnection(required(worker_settings().feeds_redis_url, "FEEDS_REDIS_URL"))
    link.know(ledger().epoch, since=ledger().read_at)
    return link


def show(connection: Connection[Any], posted: Posted, repeated: bool) -> None:  # noqa: FBT001
    """Put what was committed into the cached feeds; drop those of a batch that had been posted before."""
    shown = cache_feeds(feeds_connection(), connection, posted.movements, posted.org_ids if repeated else ())
    counts.note_published(shown)


@cache
def ledger() -> Ledger:
    """Return the facts of the ledger, as they were when this process first looked.

    Raises UnusableSetup unless the ledger is there and is what the settings say.
    """
    settings = worker_settings()
    required(settings.redis_url, "REDIS_URL")
    url = required(settings.database_url, "DATABASE_URL")
    try:
        with psycopg.connect(url, **connect_options()) as connection:
            return check_ledger(connection, settings)
    except psycopg.OperationalError as error:
        raise UnusableSetup(f"Postgres cannot be reached, check DATABASE_URL: {str(error).splitlines()[0]}") from None


def required(url: str, variable: str) -> str:
    """Return the URL, or raise UnusableSetup where there is none."""
    if not url:
        raise UnusableSetup(f"{variable} is not set and no `usage-feeds up` is running: set it, or start one.")
    return url
