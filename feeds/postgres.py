"""How is Postgres asked, by how many at once, and for how long?"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection, Error, InterfaceError, OperationalError

from feeds.queries import load_queries

SQL = load_queries(__file__)
log = logging.getLogger(__name__)

Row = tuple[Any, ...]


class PostgresAway(Exception):  # noqa: N818 -- a state of things
    """Postgres gave no answer in time. Serve what is remembered, else fail."""


class Postgres:
    """A few connections, shared by all who ask; lost ones are replaced when next needed.

    Not psycopg's pool: that one makes its askers wait while the server refuses connections, tries again ever
    more rarely (minutes after a long outage), and hands out dead connections one by one after a restart.
    """

    def __init__(self, address: str, *, at_once: int = 8, deadline_s: float = 0.8) -> None:
        self.address = address
        self.deadline_s = deadline_s
        self._turn = asyncio.Semaphore(at_once)
        self._idle: list[AsyncConnection[Row]] = []
        self._asking: set[asyncio.Task[list[Row]]] = set()

    async def fetch(self, query: bytes, parameters: Mapping[str, object], *, org_id: str | None = None) -> list[Row]:
        """Return the rows of one statement, in one round trip. Raises `PostgresAway`.

        `org_id` is the authenticated organisation: the reader's role sees its rows alone, and without one none.
        """
        asking = asyncio.create_task(self._fetch_in_turn(query, parameters, org_id))
        self._asking.add(asking)
        asking.add_done_callback(self._forget)
        try:
            # Not wait_for, which waits for the end of what it cancels: with a hung server that takes seconds.
            done, _ = await asyncio.wait({asking}, timeout=self.deadline_s)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if not done:
            asking.cancel()
            raise PostgresAway(f"no answer within {self.deadline_s} s")
        try:
            return asking.result()
        except (Error, OSError) as error:
            raise PostgresAway(type(error).__name__) from error

    async def close(self) -> None:
        """Close what is idle and give up what is under way."""
        for asking in self._asking:
            asking.cancel()
        await self._close_idle()

    async def _fetch_in_turn(self, query: bytes, parameters: Mapping[str, object], org_id: str | None) -> list[Row]:
        async with self._turn:
            if self._idle:
                try:
                    return await self._fetch_on(self._idle.pop(), query, parameters, org_id)
                except (OperationalError, InterfaceError) as error:
                    if not is_lost(error):
                        raise
                    # The server was restarted: its other connections are dead too. A read may be asked twice.
                    await self._close_idle()
            return await self._fetch_on(await self._connect(), query, parameters, org_id)

    async def _fetch_on(
        self, connection: AsyncConnection[Row], query: bytes, parameters: Mapping[str, object], org_id: str | None
    ) -> list[Row]:
        try:
            # What is sent together is one transaction: the bounds are of this statement alone.
            async with connection.pipeline():
                await connection.execute(SQL["bound_statement"], {"org_id": org_id})
                cursor = await connection.execute(query, parameters, binary=True)
            rows = await cursor.fetchall() if cursor.description else []
        except BaseException:
            await connection.close()
            raise
        self._idle.append(connection)
        return rows

    async def _connect(self) -> AsyncConnection[Row]:
        # prepare_threshold: PgBouncer in transaction mode may give every statement another server connection.
        return await AsyncConnection.connect(
            self.address,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=2,
            tcp_user_timeout=2000,
            application_name="usage-feeds endpoint",
        )

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    def _forget(self, asking: asyncio.Task[list[Row]]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # looked at, so that an abandoned question's end is not reported as a mistake


def is_lost(error: Error) -> bool:
    """Say whether the connection is gone, rather than the statement refused."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
