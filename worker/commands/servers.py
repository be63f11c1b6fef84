"""How does a command reach the servers?"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from redis import Redis
from redis.connection import parse_url

from feeds.schema import Ledger, UnusableSetup, check_ledger
from worker.intake.streams import connect
from worker.settings import worker_settings

CONNECT_S = 5


class NoServer(UnusableSetup):
    """No server at a known address. Start `up`, or set the variable."""


@contextmanager
def open_database(url: str | None = None, variable: str = "DATABASE_URL") -> Iterator[psycopg.Connection[TupleRow]]:
    """Lend an autocommit connection to the ledger's database, whose schema may be behind.

    `variable` names the setting that the address is from.
    """
    address = worker_settings().database_url if url is None else url
    if not address:
        raise NoServer(f"No Postgres is known: start `usage-feeds up`, or set {variable}.")
    try:
        connection = psycopg.connect(address, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_S)
    except psycopg.ProgrammingError:
        # What it says may repeat the address, and with it a password.
        raise NoServer(f"{variable} cannot be read: it is like postgresql://user@host:5432/database.") from None
    except psycopg.OperationalError as error:
        raise NoServer(explain_postgres(error, address, variable)) from error
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


def require_redis(url: str, variable: str = "REDIS_URL") -> str:
    """Return the address, from the setting `variable`, if it can be one."""
    if not url:
        raise NoServer(f"No Redis is known: start `usage-feeds up`, or set {variable}.")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise NoServer(f"{variable} cannot be read: it is like redis://host:6379/0.")
    return url


def explain_postgres(error: Exception, url: str, variable: str = "DATABASE_URL") -> str:
    """Say what Postgres said, and where; the address is from the setting `variable`."""
    return f"Postgres at {place_of_postgres(url)}: {reason(error)}: start `usage-feeds up`, or set {variable}."


def place_of_postgres(url: str) -> str:
    """Return host, port and database of an address, never its password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "an address that cannot be read"
    return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def place_of_redis(url: str) -> str:
    """Return host and port, or the socket, of an address, never its password."""
    try:
        parts = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        return "an address that cannot be read"
    return str(parts.get("path") or f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}")


def reason(error: Exception) -> str:
    """Return what a server or driver said, in one line."""
    said = re.findall(r"failed: (?!connection to)(.+)", str(error)) or str(error).strip().splitlines()
    return str(said[-1]).strip().removesuffix(".") if said else type(error).__name__
