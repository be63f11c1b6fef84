"""Is there a pooler such as PgBouncer between us and Postgres, and in which mode?"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from feeds.queries import load_queries
from worker.doctor.finding import Finding, fine, mend, note

SQL = load_queries(__file__)

TURNS = 5


class Backends(NamedTuple):
    """Which process of Postgres announced itself at the start, and which ones ran the statements of two clients."""

    announced: int
    first: tuple[int, ...]
    second: tuple[int, ...]

    @property
    def is_pooled(self) -> bool:
        """Tell whether there is a pooler: each client gets a number of its own from it, for the right to cancel."""
        return any(process_id != self.announced for process_id in self.first)

    @property
    def is_shared(self) -> bool:
        """Tell whether a client got another process for its next transaction, or one that the other client uses."""
        return len({*self.first}) > 1 or not {*self.first}.isdisjoint(self.second)


def read_backends(first: Connection[Any], second: Connection[Any]) -> Backends:
    """Ask two clients in turn which process of Postgres serves them. Each statement is a transaction of its own."""
    turns = [(read_process_id(first), read_process_id(second)) for _ in range(TURNS)]
    return Backends(first.info.backend_pid, *(tuple(ids) for ids in zip(*turns, strict=True)))


def read_process_id(connection: Connection[Any]) -> int:
    """Return which process of Postgres runs the next statement."""
    return int(connection.execute(SQL["read_process_id"]).fetchall()[0][0])


def judge_backends(backends: Backends) -> list[Finding]:
    """Judge the pooler's mode."""
    if not backends.is_pooled:
        return []
    if backends.is_shared:
        what = "A pooler such as PgBouncer is in front, in transaction mode."
        return [fine("pooler", f"{what} `verify` takes two of its connections.")]
    return [
        note(
            "pooler",
            "A pooler such as PgBouncer is in front, in session mode.",
            "It saves no connections: each process keeps one for its whole life, and waits if the pool is used up.",
            "Set pool_mode = transaction for this database, or a pool_size above the number of processes.",
        )
    ]


def explain_refusal(error: Exception) -> Finding | None:
    """Return what is wrong if a pooler refused a transaction, None for any other error."""
    if "statement pooling" not in str(error):
        return None
    return mend(
        "pooler",
        "PgBouncer is in front, in statement mode.",
        "It refuses transactions, so nothing can be posted.",
        "Set pool_mode = transaction for this database.",
    )


@contextmanager
def bounded(connection: Connection[Any], within_s: float) -> Iterator[None]:
    """Cut a connection if the block takes longer: a pooler without free connections lets its clients wait for minutes.

    Raises:
        TimeoutError: The connection was cut.
    """
    cut = threading.Event()

    def shut_down() -> None:
        cut.set()
        own.shutdown(socket.SHUT_RDWR)

    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        timer = threading.Timer(within_s, shut_down)
        timer.start()
        try:
            yield
        except psycopg.OperationalError as error:
            if cut.is_set():
                may_be = "the server may be stopped, or a pooler may have no connection left"
                raise TimeoutError(f"no answer within {within_s:g} s, {may_be}") from error
            raise
        finally:
            timer.cancel()
            timer.join()
