"""How do many requests use one connection to Redis at the same time?"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import hiredis

from feeds.cached.format import FeedsAway
from feeds.cached.scripts import Command

Replies = list[object]


def pack(command: Command) -> bytes:
    """Return a command in the form in which it is sent."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows only 1-tuples
    return packed


MULTI = pack(("MULTI",))
EXEC = pack(("EXEC",))
MAX_WAITING = 10_000
"""How many requests may wait for their replies; further ones are refused."""


class PendingRequest(NamedTuple):
    """A request that was sent: its replies, how many they are, and by when they must be here (in the loop's time)."""

    replies: asyncio.Future[Replies]
    expected: int
    deadline: float


class SharedFuture(asyncio.Future[Replies]):
    """A future with several waiters: if one of them is cancelled, the others still get the result."""

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 -- asyncio's own signature
        """Do nothing."""
        return False


class RedisProtocol(asyncio.Protocol):
    """One connection. All requests of one turn of the event loop are sent as one pipeline.

    A reply that is late closes the connection.
    """

    def __init__(self, reply_within_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.reply_within_s = reply_within_s
        self.reader = hiredis.Reader()
        self.pending: deque[PendingRequest] = deque()
        self.received: Replies = []
        self.unsent: list[bytes] = []
        self.shared: dict[bytes, asyncio.Future[Replies]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[str] = self.loop.create_future()

    def send(self, commands: Iterable[Command], *, atomic: bool) -> asyncio.Future[Replies]:
        """Send commands, as one MULTI block if `atomic`; the replies come in their order, errors among them."""
        packed = [pack(command) for command in commands]
        if atomic:
            packed = [MULTI, *packed, EXEC]
        return self.send_packed(packed, self.loop.create_future())

    def send_shared(self, packed: bytes) -> asyncio.Future[Replies]:
        """Send a packed read-only command once for all callers in this turn of the event loop."""
        future = self.shared.get(packed)
        if future is None:
            future = self.send_packed([packed], SharedFuture(loop=self.loop))
            if not future.done():  # a refused command was not sent: the next caller tries again
                self.shared[packed] = future
        return future

    def send_packed(self, packed: Sequence[bytes], future: asyncio.Future[Replies]) -> asyncio.Future[Replies]:
        """Send packed commands; the future gets the replies in their order."""
        if self.lost.done() or len(self.pending) >= MAX_WAITING:
            future.set_exception(FeedsAway("the connection is lost" if self.lost.done() else "too many requests wait"))
            return future
        if not self.unsent:
            self.loop.call_soon(self.flush)
        self.unsent += packed
        self.pending.append(PendingRequest(future, len(packed), self.loop.time() + self.reply_within_s))
        if self.timer is None:
            self.timer = self.loop.call_later(self.reply_within_s, self.check_deadline)
        return future

    def flush(self) -> None:
        """Write the commands of this turn of the event loop."""
        unsent, self.unsent = self.unsent, []
        self.shared.clear()
        if self.transport is not None and not self.lost.done():
            self.transport.write(b"".join(unsent))

    def check_deadline(self) -> None:
        """Cut the connection if its oldest request has waited too long."""
        self.timer = None
        if not self.pending:
            return
        left_s = self.pending[0].deadline - self.loop.time()
        if left_s <= 0:
            self.cut("no reply in time")
        else:
            self.timer = self.loop.call_later(left_s, self.check_deadline)

    def cut(self, reason: str) -> None:
        """Close the connection at once, and fail all pending requests."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self.timer is not None:
            self.timer.cancel()
        if self.transport is not None:
            self.transport.abort()
        for request in self.pending:
            if not request.replies.done():
                request.replies.set_exception(FeedsAway(reason))
        self.pending.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all pending requests."""
        self.cut(str(exc or "the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Deliver the replies that are complete."""
        try:
            self.reader.feed(data)
            while (reply := self.reader.gets()) is not False:
                self.receive(reply)
        except hiredis.ProtocolError as error:
            self.cut(str(error))

    def receive(self, reply: object) -> None:
        """Add a reply to the oldest request, which may complete it."""
        if not self.pending:
            self.cut("a reply without a request")
            return
        self.received.append(reply)
        request = self.pending[0]
        if len(self.received) == request.expected:
            self.pending.popleft()
            received, self.received = self.received, []
            if not request.replies.done():
                request.replies.set_result(received)
