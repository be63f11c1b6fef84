"""How is Postgres asked, by how many at once, and for how long?"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from psycopg import AsyncConnection, Error, InterfaceError, OperationalError, generators
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import wait_async

from feeds.queries import load_queries

SQL = load_queries(__file__)

LOOK_EVERY_S = 1.0
"""How often psycopg looks at a socket on which nothing comes."""
GOOD = frozenset({ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.PIPELINE_SYNC})

Row = tuple[Any, ...]
Statement = tuple[bytes, Mapping[str, object]]


class PostgresAway(Exception):  # noqa: N818 -- a state of things
    """Postgres gave no answer in time. Serve what is remembered, else fail."""


class Postgres:
    """A few connections, shared by all who ask; lost ones are replaced when next needed.

    What is given up is ended by the server, within 2 s, and has no part in the number of those who ask at once.

    Not psycopg's pool: that one makes its askers wait while the server refuses connections, tries again ever
    more rarely (minutes after a long outage), and hands out dead connections one by one after a restart.
    """

    def __init__(self, address: str, *, at_once: int = 8, deadline_s: float = 0.8) -> None:
        self.address = address
        self.deadline_s = deadline_s
        self._turn = asyncio.Semaphore(at_once)
        self._idle: list[AsyncConnection[Row]] = []
        self._is_closed = False

    async def fetch(self, query: bytes, parameters: Mapping[str, object], *, org_id: str | None = None) -> list[Row]:
        """Return the rows of one statement, in one round trip. Raises `PostgresAway`.

        `org_id` is the authenticated organisation: the reader's role sees its rows alone, and without one none.
        """
        statements = [(SQL["bound_statement"], {"org_id": org_id}), (query, parameters)]
        try:
            async with asyncio.timeout(self.deadline_s), self._turn:
                return await self._ask(statements)
        except TimeoutError:
            pass  # raised below: with its traceback it would keep a half-made connection open
        except (Error, OSError) as error:
            raise PostgresAway(type(error).__name__) from error
        raise PostgresAway(f"no answer within {self.deadline_s} s")

    async def close(self) -> None:
        """Close what is idle, now or once it is."""
        self._is_closed = True
        await self._close_idle()

    async def _ask(self, statements: Sequence[Statement]) -> list[Row]:
        if self._idle:
            try:
                return await self._ask_on(self._idle.pop(), statements)
            except (OperationalError, InterfaceError) as error:
                if not is_lost(error):
                    raise
                # The server was restarted: its other connections are dead too. A read may be asked twice.
                await self._close_idle()
        return await self._ask_on(await self._connect(), statements)

    async def _ask_on(self, connection: AsyncConnection[Row], statements: Sequence[Statement]) -> list[Row]:
        try:
            rows = await ask_at_once(connection, statements)
        except BaseException:
            await connection.close()
            raise
        self._idle.append(connection)
        if self._is_closed:
            await self._close_idle()
        return rows

    async def _connect(self) -> AsyncConnection[Row]:
        connection = await AsyncConnection.connect(
            self.address,
            autocommit=True,
            connect_timeout=2,
            tcp_user_timeout=2000,
            application_name="usage-feeds endpoint",
        )
        connection.pgconn.enter_pipeline_mode()
        return connection

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()


async def ask_at_once(connection: AsyncConnection[Row], statements: Sequence[Statement]) -> list[Row]:
    """Return the rows of the last of some statements, sent together: they are one transaction.

    Nothing is prepared: PgBouncer in transaction mode may give every transaction another server connection.
    By the parts of psycopg's own `pipeline()`, which waits for the server once for each of its commands and takes twice
    the time. Where it is cancelled, so with a server that hangs, the connection is of no more use.
    """
    pgconn = connection.pgconn
    transformer = Transformer(connection)
    for query, parameters in statements:
        text, names = number_parameters(query)
        values = transformer.dump_sequence([parameters[name] for name in names], [PyFormat.AUTO] * len(names))
        pgconn.send_query_params(text, values, transformer.types, transformer.formats, Format.BINARY)
    pgconn.pipeline_sync()
    result = await wait_async(converse(pgconn, len(statements)), pgconn.socket, interval=LOOK_EVERY_S)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def converse(pgconn: PGconn, statements: int) -> PQGen[PGresult]:
    """Send what is to be sent, and return the result of the last statement. Raises the first error, as psycopg does."""
    yield from generators.send(pgconn)
    results: list[PGresult] = []
    for _ in range(statements + 1):  # the last is the end of the transaction, which may be refused too
        results += yield from generators.fetch_many(pgconn)
    for result in results:
        if result.status not in GOOD:
            raise error_from_result(result)
    return results[-2]


@cache
def number_parameters(query: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a query with `$1`, `$2` ... for its `%(name)s`, and the names in that order. It holds no other `%`."""
    names: dict[bytes, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        return b"$%d" % names.setdefault(found[1], len(names) + 1)

    text = re.sub(rb"%\((\w+)\)s", number, query)
    return text, tuple(name.decode() for name in names)


def is_lost(error: Error) -> bool:
    """Say whether the connection is gone, rather than the statement refused."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
