"""How do concurrent requests of one process share one connection to the feeds' Redis?"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence

import hiredis
from redis.connection import parse_url

from feeds.cached.format import FeedsAway, Server, read_server
from feeds.cached.protocol import RedisProtocol, Replies
from feeds.cached.scripts import Command, Script, is_unknown_script

REPLY_WITHIN_S = 0.1
CONNECT_WITHIN_S = 1.0
LOOK_EVERY_S = 1.0
"""How often the server is asked who it is: a connection survives a failover there and back."""
BACK_OFF_S = (0.01, 0.05, 0.2, 0.5, 1.0)


class Multiplexer:
    """One connection to Redis that gathers the requests of a process into pipelines.

    `server` is the master at its other end, None while there is none. A request that is not answered within
    `reply_within_s` fails, with all others; a new connection is sought in the background.
    `before_use` is awaited before a new connection may be used; where it fails, so does the connection.
    """

    def __init__(
        self,
        url: str,
        before_use: Callable[[], Awaitable[object]] | None = None,
        reply_within_s: float = REPLY_WITHIN_S,
    ) -> None:
        self.target = parse_url(url)  # type: ignore[no-untyped-call]
        self.before_use = before_use
        self.reply_within_s = reply_within_s
        self.wire: RedisProtocol | None = None
        self.known: Server | None = None
        self.last_error = "not yet connected"
        self.task: asyncio.Task[None] | None = None

    @property
    def server(self) -> Server | None:
        """Return the master at the other end."""
        return None if self.wire is None or self.wire.lost.done() else self.known

    async def start(self) -> None:
        """Begin to connect, and wait for the first attempt's end."""
        first = asyncio.Event()
        self.task = asyncio.create_task(self.keep_connected(first))
        await first.wait()

    async def close(self) -> None:
        """Disconnect for good."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            await asyncio.sleep(0)  # for the transport to close

    def ask(self, commands: Sequence[Command], *, atomic: bool = True) -> asyncio.Future[Replies]:
        """Send commands on the present connection, at once, as one MULTI block if `atomic`; fails as FeedsAway.

        Awaited, it gives what MULTI, the commands and EXEC were answered, or just the commands.
        Who builds keys for `server` and calls this without awaiting in between reaches that server.
        """
        return self.wire.send(commands, atomic=atomic) if self.wire is not None else self.fail()

    def share(self, packed: bytes) -> asyncio.Future[Replies]:
        """Send a packed command that only reads, once for all who ask for it in this turn of the event loop.

        A reply may hold for many, so nobody may change it. Fails as FeedsAway.
        """
        return self.wire.share(packed) if self.wire is not None else self.fail()

    def fail(self) -> asyncio.Future[Replies]:
        """Return what an asker gets while there is no connection."""
        future: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
        future.set_exception(FeedsAway(self.last_error))
        return future

    async def block(self, commands: Sequence[Command]) -> Replies:
        """Return the replies to commands that run as one block, errors among them.

        A Redis 7.0 that is full refuses even reads within MULTI: then they run as a plain pipeline.
        """
        wire = self.wire
        *queued, answer = await self.ask(commands)
        if isinstance(answer, list):
            return answer
        if wire is not self.wire or not any(str(reply).startswith("OOM") for reply in queued):
            raise FeedsAway(str(answer))
        return await self.ask(commands, atomic=False)

    async def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[str | bytes | int]) -> object:
        """Return a script's reply, perhaps an error; a script that the server forgot is sent whole."""
        wire = self.wire
        (reply,) = await self.ask([("EVALSHA", script.digest, len(keys), *keys, *arguments)], atomic=False)
        if not is_unknown_script(reply):
            return reply
        if wire is not self.wire:
            raise FeedsAway("another connection")
        (reply,) = await self.ask([("EVAL", script.text, len(keys), *keys, *arguments)], atomic=False)
        return reply

    async def keep_connected(self, first: asyncio.Event) -> None:
        """Connect, watch, and connect again."""
        failures = 0
        while True:
            try:
                wire = await self.connect()
                failures = 0
                first.set()
                self.last_error = await self.watch(wire)
            except (FeedsAway, OSError, TimeoutError) as error:
                self.last_error = str(error) or type(error).__name__
            finally:
                self.wire = self.known = None
            first.set()
            await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])
            failures += 1

    async def connect(self) -> RedisProtocol:
        """Make a connection that is ready for use."""
        async with asyncio.timeout(CONNECT_WITHIN_S):
            wire = await self.open()
            try:
                await self.greet(wire)
                server = await self.look(wire)
                if self.before_use is not None:
                    await self.before_use()
            except BaseException:
                wire.cut("not fit for use")
                raise
        self.wire, self.known = wire, server
        return wire

    async def open(self) -> RedisProtocol:
        """Connect to where the URL leads."""
        loop = asyncio.get_running_loop()

        def make() -> RedisProtocol:
            return RedisProtocol(self.reply_within_s)

        target = self.target
        if "path" in target:
            _, wire = await loop.create_unix_connection(make, target["path"])
            return wire
        host, port = target.get("host", "localhost"), target.get("port", 6379)
        tls = secure(target) if "connection_class" in target else None
        _, wire = await loop.create_connection(make, host, port, ssl=tls)
        return wire

    async def greet(self, wire: RedisProtocol) -> None:
        """Say who we are, and which database we mean."""
        commands: list[Command] = []
        if password := self.target.get("password"):
            username = self.target.get("username")
            commands.append(("AUTH", username, password) if username else ("AUTH", password))
        if database := self.target.get("db"):
            commands.append(("SELECT", database))
        if commands:
            raise_error(await wire.send(commands, atomic=False))

    async def look(self, wire: RedisProtocol) -> Server:
        """Ask the server who it is; a replica is none of ours."""
        replies = await wire.send([("INFO", "server"), ("INFO", "replication")], atomic=False)
        raise_error(replies)
        server = read_server(b"".join(reply for reply in replies if isinstance(reply, bytes)))
        if server is None:
            raise FeedsAway("not a master")
        return server

    async def watch(self, wire: RedisProtocol) -> str:
        """Look at the server again and again, until the connection is lost; returns why it was."""
        try:
            while not wire.lost.done():
                await asyncio.wait([wire.lost], timeout=LOOK_EVERY_S)
                if not wire.lost.done() and (server := await self.look(wire)) != self.known:
                    self.known = server  # the same object for as long as it is the same server
        finally:
            wire.cut("closed")
        return wire.lost.result()


def secure(target: dict[str, str]) -> ssl.SSLContext:
    """Return the TLS context that the URL asks for."""
    context = ssl.create_default_context(cafile=target.get("ssl_ca_certs"), capath=target.get("ssl_ca_path"))
    if target.get("ssl_check_hostname") in {False, "false", "False"} or target.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
    if target.get("ssl_cert_reqs") == "none":
        context.verify_mode = ssl.CERT_NONE
    if certificate := target.get("ssl_certfile"):
        context.load_cert_chain(certificate, target.get("ssl_keyfile"))
    return context


def raise_error(replies: Replies) -> None:
    """Fail if there is an error among the replies."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise FeedsAway(str(reply))
