"""What goes over one connection to Redis, for many requests at once?"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import hiredis

from feeds.cached.format import FeedsAway
from feeds.cached.scripts import Command

Replies = list[object]


def pack(command: Command) -> bytes:
    """Return a command as it is sent."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples alone
    return packed


MULTI = pack(("MULTI",))
EXEC = pack(("EXEC",))
MAX_WAITING = 10_000
"""How many requests may wait for their replies; more are refused."""


class Waiting(NamedTuple):
    """A request on its way: how many replies are its own, and by when they must be here."""

    replies: asyncio.Future[Replies]
    wanted: int
    deadline: float


class Shared(asyncio.Future[Replies]):
    """What several wait for: one who gives up does not take it from the others."""

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 -- asyncio's own signature
        """Do nothing."""
        return False


class RedisProtocol(asyncio.Protocol):
    """One connection. Requests of one turn of the event loop leave as one pipeline; a late reply cuts all off."""

    def __init__(self, reply_within_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.reply_within_s = reply_within_s
        self.reader = hiredis.Reader()
        self.waiting: deque[Waiting] = deque()
        self.received: Replies = []
        self.unsent: list[bytes] = []
        self.shared: dict[bytes, asyncio.Future[Replies]] = {}
        self.alarm: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[str] = self.loop.create_future()

    def send(self, commands: Iterable[Command], *, atomic: bool) -> asyncio.Future[Replies]:
        """Send commands, as one MULTI block if `atomic`; the replies come in their order, errors among them."""
        packed = [pack(command) for command in commands]
        if atomic:
            packed = [MULTI, *packed, EXEC]
        return self.send_packed(packed, self.loop.create_future())

    def share(self, packed: bytes) -> asyncio.Future[Replies]:
        """Send a command that only reads, once for all who ask for it in this turn of the event loop."""
        future = self.shared.get(packed)
        if future is None:
            future = self.send_packed([packed], Shared(loop=self.loop))
            if not future.done():  # what was refused is not sent, and must not be refused to others
                self.shared[packed] = future
        return future

    def send_packed(self, packed: Sequence[bytes], future: asyncio.Future[Replies]) -> asyncio.Future[Replies]:
        """Send commands that are packed already; the future gets the replies in their order."""
        if self.lost.done() or len(self.waiting) >= MAX_WAITING:
            future.set_exception(FeedsAway("the connection is lost" if self.lost.done() else "too many requests wait"))
            return future
        if not self.unsent:
            self.loop.call_soon(self.flush)
        self.unsent += packed
        self.waiting.append(Waiting(future, len(packed), self.loop.time() + self.reply_within_s))
        if self.alarm is None:
            self.alarm = self.loop.call_later(self.reply_within_s, self.check)
        return future

    def flush(self) -> None:
        """Write what this turn of the event loop has gathered."""
        unsent, self.unsent = self.unsent, []
        self.shared.clear()
        if self.transport is not None and not self.lost.done():
            self.transport.write(b"".join(unsent))

    def check(self) -> None:
        """Cut the connection if its oldest request waits for too long."""
        self.alarm = None
        if not self.waiting:
            return
        left_s = self.waiting[0].deadline - self.loop.time()
        if left_s <= 0:
            self.cut("no reply in time")
        else:
            self.alarm = self.loop.call_later(left_s, self.check)

    def cut(self, reason: str) -> None:
        """Give up the connection and fail all that wait."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self.alarm is not None:
            self.alarm.cancel()
        if self.transport is not None:
            self.transport.abort()
        for request in self.waiting:
            if not request.replies.done():
                request.replies.set_exception(FeedsAway(reason))
        self.waiting.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write to."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all that wait."""
        self.cut(str(exc or "the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Hand out the replies that are complete."""
        try:
            self.reader.feed(data)
            while (reply := self.reader.gets()) is not False:
                self.receive(reply)
        except hiredis.ProtocolError as error:
            self.cut(str(error))

    def receive(self, reply: object) -> None:
        """Add a reply to those of the oldest request, which may complete it."""
        if not self.waiting:
            self.cut("a reply that nobody asked for")
            return
        self.received.append(reply)
        request = self.waiting[0]
        if len(self.received) == request.wanted:
            self.waiting.popleft()
            received, self.received = self.received, []
            if not request.replies.done():
                request.replies.set_result(received)
