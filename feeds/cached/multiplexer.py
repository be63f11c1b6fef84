"""How do concurrent requests of one process share one connection to the feeds' Redis?"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

import hiredis

from feeds.addresses.redis import parse_redis
from feeds.cached.format import FeedsAway, Server, read_server
from feeds.cached.protocol import RedisProtocol, Replies
from feeds.cached.scripts import Command, Script, is_unknown_script

log = logging.getLogger(__name__)

REPLY_WITHIN_S = 0.1
CONNECT_WITHIN_S = 1.0
IDENTIFY_EVERY_S = 1.0
"""How often the server is asked for its role and ids: a connection survives a failover and the failback."""
BACK_OFF_S = (0.01, 0.05, 0.2, 0.5, 1.0)


class Multiplexer:
    """One connection to Redis that sends the commands of concurrent requests as pipelines.

    If a request is not answered in time, it and all other requests under way fail, and the connection is replaced in
    the background.

    Args:
        url: The address of the feeds' Redis.
        before_use: Awaited before a new connection is used; if it raises `FeedsAway`, the connection is given up.
        reply_within_s: How long a request waits for its reply.
    """

    def __init__(
        self,
        url: str,
        before_use: Callable[[], Awaitable[object]] | None = None,
        reply_within_s: float = REPLY_WITHIN_S,
    ) -> None:
        self.address = parse_redis(url, "FEEDS_REDIS_URL")
        self.before_use = before_use
        self.reply_within_s = reply_within_s
        self.connection: RedisProtocol | None = None
        self.known: Server | None = None
        self.last_error = "not yet connected"
        self.task: asyncio.Task[None] | None = None

    @property
    def server(self) -> Server | None:
        """Return the master at the other end, None while there is no connection."""
        return None if self.connection is None or self.connection.lost.done() else self.known

    async def start(self) -> None:
        """Start to connect, and wait until the first attempt has ended."""
        first = asyncio.Event()
        self.task = asyncio.create_task(self._keep_connected(first))
        await first.wait()

    async def close(self) -> None:
        """Disconnect for good."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            await asyncio.sleep(0)  # for the transport to close

    def send(self, commands: Sequence[Command], *, atomic: bool = True) -> asyncio.Future[Replies]:
        """Send commands on the present connection, as one MULTI block if `atomic`.

        Returns a future of the replies to MULTI, the commands and EXEC, or just to the commands. It fails as
        `FeedsAway`.
        Commands reach `server` if the caller does not await between reading `server` and this call.
        """
        return self.connection.send(commands, atomic=atomic) if self.connection is not None else self._fail()

    def send_shared(self, packed: bytes) -> asyncio.Future[Replies]:
        """Send a packed read-only command once for all callers in this turn of the event loop.

        Callers share the reply and must not change it. The future fails as `FeedsAway`.
        """
        return self.connection.send_shared(packed) if self.connection is not None else self._fail()

    def _fail(self) -> asyncio.Future[Replies]:
        """Return the future of a request that was made without a connection."""
        future: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
        future.set_exception(FeedsAway(self.last_error))
        return future

    async def run_block(self, commands: Sequence[Command]) -> Replies:
        """Return the replies to commands that run as one MULTI block, error replies among them. Raises `FeedsAway`.

        When a Redis 7.0 is full it refuses even reads within MULTI: then they run as a plain pipeline.
        """
        connection = self.connection
        *queued, answer = await self.send(commands)
        if isinstance(answer, list):
            return answer
        if connection is not self.connection or not any(str(reply).startswith("OOM") for reply in queued):
            raise FeedsAway(str(answer))
        return await self.send(commands, atomic=False)

    async def run_script(self, script: Script, keys: Sequence[bytes], arguments: Sequence[str | bytes | int]) -> object:
        """Return a script's reply, perhaps an error reply. Sends the script's text if the server does not know it.

        Raises `FeedsAway`.
        """
        connection = self.connection
        (reply,) = await self.send([("EVALSHA", script.digest, len(keys), *keys, *arguments)], atomic=False)
        if not is_unknown_script(reply):
            return reply
        if connection is not self.connection:
            raise FeedsAway("another connection")
        (reply,) = await self.send([("EVAL", script.text, len(keys), *keys, *arguments)], atomic=False)
        return reply

    async def _keep_connected(self, first: asyncio.Event) -> None:
        """Connect, watch the connection, and connect again, for ever.

        An unexpected error ends an attempt, never this task: if it ended, the endpoint would read everything from
        Postgres until its restart. Such an error is logged, but not if the previous attempt failed with the same one.
        """
        failures = 0
        while True:
            try:
                connection = await self._connect()
                failures = 0
                first.set()
                self.last_error = await self._watch(connection)
            except (FeedsAway, OSError, TimeoutError) as error:
                self.last_error = str(error) or type(error).__name__
            except Exception as error:  # the edge of the task: no caller would see the error
                reason = type(error).__name__
                if failures == 0 or reason != self.last_error:
                    log.exception("the connection to the feeds' Redis failed; it is tried again")
                self.last_error = reason
            finally:
                self.connection = self.known = None
            first.set()
            await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])
            failures += 1

    async def _connect(self) -> RedisProtocol:
        """Return a connection that is ready for use."""
        async with asyncio.timeout(CONNECT_WITHIN_S):
            connection = await self._open()
            try:
                await self._authenticate(connection)
                server = await self._identify(connection)
                if self.before_use is not None:
                    await self.before_use()
            except BaseException:
                connection.cut("not fit for use")
                raise
        self.connection, self.known = connection, server
        return connection

    async def _open(self) -> RedisProtocol:
        """Open a socket to the address."""
        loop = asyncio.get_running_loop()

        def make() -> RedisProtocol:
            return RedisProtocol(self.reply_within_s)

        address = self.address
        if address.path:
            _, connection = await loop.create_unix_connection(make, address.path)
        else:
            _, connection = await loop.create_connection(make, address.host, address.port, ssl=address.tls_context())
        return connection

    async def _authenticate(self, connection: RedisProtocol) -> None:
        """Send user, password and database number."""
        commands: list[Command] = []
        username, password = self.address.username, self.address.password or ""
        if username:
            commands.append(("AUTH", username, password))
        elif password:
            commands.append(("AUTH", password))
        if self.address.db:
            commands.append(("SELECT", self.address.db))
        if commands:
            raise_error(await connection.send(commands, atomic=False))

    async def _identify(self, connection: RedisProtocol) -> Server:
        """Return which server answers. Raises `FeedsAway` for a replica."""
        replies = await connection.send([("INFO", "server"), ("INFO", "replication")], atomic=False)
        raise_error(replies)
        server = read_server(b"".join(reply for reply in replies if isinstance(reply, bytes)))
        if server is None:
            raise FeedsAway("not a master")
        return server

    async def _watch(self, connection: RedisProtocol) -> str:
        """Identify the server again and again until the connection is lost; returns why it was lost."""
        try:
            while not connection.lost.done():
                await asyncio.wait([connection.lost], timeout=IDENTIFY_EVERY_S)
                if not connection.lost.done() and (server := await self._identify(connection)) != self.known:
                    self.known = server  # the same object for as long as it is the same server
        finally:
            connection.cut("closed")
        return connection.lost.result()


def raise_error(replies: Replies) -> None:
    """Raise `FeedsAway` if there is an error among the replies."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise FeedsAway(str(reply))
