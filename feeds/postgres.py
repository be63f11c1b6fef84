"""How does the endpoint query Postgres: how many statements at the same time, and within which time?"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from psycopg import AsyncConnection, Error, InterfaceError, OperationalError, generators
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import wait_async

from feeds.addresses.postgres import next_host_first
from feeds.queries import load_queries

SQL = load_queries(__file__)

WAKE_EVERY_S = 1.0
"""How often psycopg wakes up while it waits for a socket."""
READ_COMMITTED = "read committed"
SUCCESS = frozenset({ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.PIPELINE_SYNC})

Row = tuple[Any, ...]
Statement = tuple[bytes, Mapping[str, object]]
COMMIT: Statement = (SQL["commit"], {})
IS_STANDBY = b"is_standby"
"""The first column of `bound_statement`."""
TRUE = b"\x01"
"""In PostgreSQL's binary form."""


class PostgresAway(Exception):  # noqa: N818 -- a state, not a mistake
    """Postgres did not answer in time. Serve what is remembered, or else fail."""


class ServerIsStandby(OperationalError):  # noqa: N818 -- a state, not a mistake
    """The connection leads to a standby, whose pages would lag. A new one may lead to the primary."""


class Postgres:
    """A few connections for all callers of a process. A lost connection, or one to a standby, is replaced on next use.

    The server ends within 2 s what a caller has given up; that no longer counts towards `concurrency`.

    It is not psycopg's pool: that one lets callers wait while the server refuses connections, retries more and more
    rarely (after minutes, if an outage was long), and hands out dead connections one by one after a restart.

    Args:
        address: The connection string.
        concurrency: How many statements may run at the same time; more wait.
        deadline_s: How long a call may take, including this wait.
        schema: The Postgres schema that holds the ledger.
        isolation: The default isolation level of database and role.
    """

    def __init__(
        self,
        address: str,
        *,
        concurrency: int = 8,
        deadline_s: float = 0.8,
        schema: str = "public",
        isolation: str = READ_COMMITTED,
    ) -> None:
        self.address = address
        self.schema = schema
        self.isolation = isolation
        self.deadline_s = deadline_s
        self._slots = asyncio.Semaphore(concurrency)
        self._idle: list[AsyncConnection[Row]] = []
        self._is_closed = False

    async def fetch(
        self, query: bytes, parameters: Mapping[str, object], *, org_id: str | None = None, writes: bool = False
    ) -> list[Row]:
        """Return the rows of one statement, in one round trip. Raises `PostgresAway`.

        `org_id` is the authenticated organisation: the reader's role sees only its rows, and without one no rows.
        `writes` tells that the statement changes rows.
        """
        statements = [(SQL["bound_statement"], {"org_id": org_id, "schema": self.schema}), (query, parameters)]
        if writes or self.isolation != READ_COMMITTED:
            begin = SQL["begin_writing" if writes else "begin_reading"]
            statements = [(begin, {}), *statements, COMMIT]
        try:
            async with asyncio.timeout(self.deadline_s), self._slots:
                return await self._run(statements)
        except TimeoutError:
            pass  # PostgresAway is raised below: chained to this error, it would keep a half-open connection alive
        except (Error, OSError) as error:
            raise PostgresAway(type(error).__name__) from error
        raise PostgresAway(f"no answer within {self.deadline_s} s")

    async def close(self) -> None:
        """Close idle connections now, and the others as soon as they are idle."""
        self._is_closed = True
        await self._close_idle()

    async def _run(self, statements: Sequence[Statement]) -> list[Row]:
        if self._idle:
            try:
                return await self._run_on(self._idle.pop(), statements)
            except (OperationalError, InterfaceError) as error:
                if not is_lost(error):
                    raise
                # The server has restarted or was demoted: its other connections are of no use either. A read may be
                # sent twice.
                await self._close_idle()
        return await self._run_on(await self._connect(), statements)

    async def _run_on(self, connection: AsyncConnection[Row], statements: Sequence[Statement]) -> list[Row]:
        try:
            rows = await run_transaction(connection, statements)
        except BaseException as error:
            try:
                if isinstance(error, ServerIsStandby):
                    await begin_to_leave(connection)
            finally:
                await connection.close()
            raise
        self._idle.append(connection)
        if self._is_closed:
            await self._close_idle()
        return rows

    async def _connect(self) -> AsyncConnection[Row]:
        address = self.address
        try:
            connection = await AsyncConnection.connect(
                address,
                autocommit=True,
                connect_timeout=2,
                tcp_user_timeout=2000,
                application_name="usage-feeds endpoint",
                client_encoding="UTF8",
            )
        except asyncio.CancelledError:  # the deadline, which comes before the next host of several is tried
            if self.address == address:
                self.address = next_host_first(address)
            raise
        connection.pgconn.enter_pipeline_mode()
        return connection

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()


async def run_transaction(connection: AsyncConnection[Row], statements: Sequence[Statement]) -> list[Row]:
    """Run statements as one transaction, in one round trip. Returns the rows of the last one before a COMMIT.

    Nothing is prepared: PgBouncer in transaction mode may give every transaction another server connection.
    Built from the parts of psycopg's own `pipeline()`, which waits for the server once for each of its commands and so
    takes twice the time. If this is cancelled (for example because the server hangs), close the connection.
    """
    pgconn = connection.pgconn
    transformer = Transformer(connection)
    for query, parameters in statements:
        text, names = number_parameters(query)
        values = transformer.dump_sequence([parameters[name] for name in names], [PyFormat.AUTO] * len(names))
        pgconn.send_query_params(text, values, transformer.types, transformer.formats, Format.BINARY)
    pgconn.pipeline_sync()
    results = await wait_async(exchange(pgconn, len(statements)), pgconn.socket, interval=WAKE_EVERY_S)
    result = results[-2 if statements[-1] is COMMIT else -1]
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


async def begin_to_leave(connection: AsyncConnection[Row]) -> None:
    """Begin a transaction before the connection is closed: then PgBouncer closes its connection to the server as well.

    It would lend it to the next client otherwise, for up to an hour.
    """
    pgconn = connection.pgconn
    with suppress(Error):
        pgconn.send_query_params(b"BEGIN", None)
        pgconn.pipeline_sync()
        await wait_async(exchange(pgconn, 1), pgconn.socket, interval=WAKE_EVERY_S)


def exchange(pgconn: PGconn, statements: int) -> PQGen[list[PGresult]]:
    """Send what is queued, and return the result of each statement.

    Raises the first error, as psycopg does, and `ServerIsStandby`: what follows may be wrong on a standby that lags.
    """
    yield from generators.send(pgconn)
    results: list[PGresult] = []
    for _ in range(statements + 1):  # the last one is the end of the transaction, which may be refused too
        results += yield from generators.fetch_many(pgconn)
    for result in results:
        if result.status not in SUCCESS:
            raise error_from_result(result)
        if result.ntuples and result.fname(0) == IS_STANDBY and result.get_value(0, 0) == TRUE:
            raise ServerIsStandby
    return results[:-1]


@cache
def number_parameters(query: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a query with `$1`, `$2` ... for its `%(name)s`, and the names in that order. It may hold no other `%`."""
    names: dict[bytes, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        return b"$%d" % names.setdefault(found[1], len(names) + 1)

    text = re.sub(rb"%\((\w+)\)s", number, query)
    return text, tuple(name.decode() for name in names)


def is_lost(error: Error) -> bool:
    """Tell whether the connection is lost; otherwise the statement was refused."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
