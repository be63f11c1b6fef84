"""How does a command reach the servers?"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.rows import TupleRow
from redis import Redis

from feeds.schema import Ledger, UnusableSetup, check_ledger
from worker.settings import worker_settings
from worker.streams import connect

CONNECT_S = 5


class NoServer(UnusableSetup):
    """No address is known. Start `up`, or set the variable."""


@contextmanager
def open_database(url: str | None = None) -> Iterator[psycopg.Connection[TupleRow]]:
    """Lend an autocommit connection to the ledger's database, whose schema may be behind."""
    address = worker_settings().database_url if url is None else url
    if not address:
        raise NoServer("No Postgres is known: start `usage-feeds up`, or set DATABASE_URL.")
    try:
        connection = psycopg.connect(address, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_S)
    except psycopg.ProgrammingError:
        # What it says may repeat the address, and with it a password.
        raise NoServer("DATABASE_URL cannot be read: it is like postgresql://user@host:5432/database.") from None
    with connection:
        yield connection


@contextmanager
def open_ledger() -> Iterator[tuple[psycopg.Connection[TupleRow], Ledger]]:
    """Lend a connection to a ledger that this program and its settings are fit for."""
    with open_database() as connection:
        yield connection, check_ledger(connection, worker_settings())


@contextmanager
def open_streams() -> Iterator[Redis]:
    """Lend a client of the Redis that holds the streams."""
    with connect(require_redis(worker_settings().redis_url)) as redis:
        yield redis


def require_redis(url: str) -> str:
    """Return the address if it can be one."""
    if not url:
        raise NoServer("No Redis is known: start `usage-feeds up`, or set REDIS_URL.")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise NoServer("REDIS_URL cannot be read: it is like redis://host:6379/0.")
    return url
