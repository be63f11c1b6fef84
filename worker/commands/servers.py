"""How does a command connect to Postgres and Redis?"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.rows import TupleRow
from redis import Redis

from feeds.addresses.postgres import place_of
from feeds.addresses.redis import parse_redis
from feeds.addresses.text import BadAddress
from feeds.database import connect as connect_database
from feeds.schema import Ledger, UnusableSetup, check_ledger
from worker.broker.start import refuse_clusters
from worker.intake.streams import connect
from worker.settings import worker_settings

CONNECT_WITHIN_S = 5


class NoServer(UnusableSetup):
    """A server's address is missing or wrong, or no server answers there. Start `up`, or set the variable."""


@contextmanager
def open_database(url: str | None = None, variable: str = "DATABASE_URL") -> Iterator[psycopg.Connection[TupleRow]]:
    """Give an autocommit connection to the ledger's database. Its schema may be too old.

    Args:
        url: The database's address; None for DATABASE_URL.
        variable: The setting that the address comes from, for error messages.

    Raises:
        NoServer: The message says which variable to set.
    """
    address = worker_settings().database_url if url is None else url
    if not address:
        raise NoServer(f"No address of Postgres is set: start `usage-feeds up`, or set {variable}.")
    try:
        connection = connect_database(address, CONNECT_WITHIN_S)
    except psycopg.ProgrammingError:
        # Its message may repeat the address, and with it a password.
        raise NoServer(
            f"{variable} is not a valid address: set one like postgresql://user@host:5432/database."
        ) from None
    except psycopg.OperationalError as error:
        raise NoServer(explain_postgres(error, address, variable)) from error
    with connection:
        yield connection


@contextmanager
def open_ledger() -> Iterator[tuple[psycopg.Connection[TupleRow], Ledger]]:
    """Give a connection to the ledger, after a check that its schema and facts match this program and its settings.

    Raises UnusableSetup.
    """
    with open_database() as connection:
        yield connection, check_ledger(connection, worker_settings())


@contextmanager
def open_streams() -> Iterator[Redis]:
    """Give a client of the Redis that holds the streams. Raises BadAddress for a node of a Redis Cluster."""
    url = require_redis(worker_settings().redis_url)
    refuse_clusters()
    with connect(url) as redis:
        yield redis


def require_redis(url: str, variable: str = "REDIS_URL") -> str:
    """Return the address, which comes from the setting `variable`. Raises NoServer if there is none."""
    if not url:
        raise NoServer(f"No address of Redis is set: start `usage-feeds up`, or set {variable}.")
    return url


def explain_postgres(error: Exception, url: str, variable: str = "DATABASE_URL") -> str:
    """Return what Postgres or its driver reported, where, and what to do.

    Args:
        error: What was raised.
        url: The address that was tried.
        variable: The setting that the address comes from.
    """
    return f"Postgres at {place_of(url)}: {reason(error)}: start `usage-feeds up`, or set {variable}."


def place_of_redis(url: str) -> str:
    """Return host and port, or the socket, of an address, without its password."""
    try:
        return parse_redis(url).place
    except BadAddress:
        return "an invalid address"


def reason(error: Exception) -> str:
    """Return what a server or driver reported, in one line."""
    lines = re.findall(r"failed: (?!connection to)(.+)", str(error)) or str(error).strip().splitlines()
    return str(lines[-1]).strip().removesuffix(".") if lines else type(error).__name__
