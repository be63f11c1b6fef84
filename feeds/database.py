"""How does a process connect to Postgres, and how does each of its transactions begin?

A database or a role may carry any settings, and behind PgBouncer another client may have left its own on the
connection. So every transaction sets what this program depends on, for itself only. (PgBouncer in transaction mode
forbids settings of the session, and most settings in the connection's options.) The statements that set them are in
`database.sql`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from feeds.queries import load_queries

SQL = load_queries(__file__)
T = TypeVar("T")
READING, WRITING = SQL["begin_reading"], SQL["begin_writing"]


def connect(url: str, timeout_s: int) -> Connection[TupleRow]:
    """Return a connection on which `begin` starts transactions. No statement is prepared, so that PgBouncer works.

    The client's encoding is the only setting of the session: PgBouncer restores it for each client.
    """
    return psycopg.connect(
        url, autocommit=True, prepare_threshold=None, connect_timeout=timeout_s, client_encoding="UTF8"
    )


@contextmanager
def begin(connection: Connection[Any], opening: bytes = WRITING) -> Iterator[None]:
    """Run a transaction with this program's own settings. It begins in one round trip.

    Blocks of `connection.transaction()` inside it are savepoints.

    Args:
        connection: In no transaction.
        opening: The statements that begin the transaction. `READING` works on a standby too.
    """
    is_autocommit = connection.autocommit
    connection.autocommit = True  # so psycopg sends no BEGIN; this raises ProgrammingError if a transaction is open
    try:
        with leaving_standby(connection):
            connection.execute(opening + SQL["set_own_settings"])
        yield
        connection.commit()
    except BaseException:
        with suppress(psycopg.Error):  # a lost connection: the server rolls back by itself
            connection.rollback()
        raise
    finally:
        if not is_autocommit and not connection.closed:
            connection.autocommit = False


@contextmanager
def leaving_standby(connection: Connection[Any]) -> Iterator[None]:
    """Close a connection on which a standby refuses to begin a transaction: a new one may lead to the primary.

    It is closed within a transaction: then PgBouncer closes its connection to the server as well. It would lend it to
    the next client otherwise, for up to an hour.
    """
    try:
        yield
    except psycopg.errors.FeatureNotSupported:
        with suppress(psycopg.Error):
            connection.execute("BEGIN")
            connection.close()
        raise


def fetch(cursor: Cursor[T], query: bytes, opening: bytes = READING) -> list[T]:
    """Return the rows of one query without parameters: a transaction of its own, in one round trip.

    Args:
        cursor: Of a connection in autocommit mode and in no transaction.
        query: It ends with a semicolon.
        opening: The statements that begin the transaction. A standby refuses `WRITING`.
    """
    try:
        with leaving_standby(cursor.connection):
            cursor.execute(opening + SQL["set_own_settings"] + query + b"COMMIT")
    except psycopg.Error:
        with suppress(psycopg.Error):
            cursor.connection.rollback()
        raise
    cursor.set_result(-2)  # the last one is that of COMMIT
    return cursor.fetchall()
