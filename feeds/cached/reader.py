"""What does a reader get from the cache, and how is a feed put there?"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from secrets import token_hex
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

from feeds import counters as tally
from feeds.cached import format as proof
from feeds.cached.format import (
    EPOCH_EVERY_S,
    EPOCH_WITHIN_S,
    LIFETIME_S,
    UNCHANGED,
    WINDOW,
    FeedsAway,
    Hit,
    Miss,
    MissReason,
    Server,
    Unchanged,
)
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.protocol import pack
from feeds.cached.scripts import PUT, RANGE, Command, is_unknown_script
from feeds.page import Place
from feeds.postgres import PostgresAway
from feeds.store import Slice

TRIES = 3
REMEMBERED = 100_000
"""Of how many feeds a process remembers the highest total that it has served."""


class Fence(NamedTuple):
    """What a refill saw before it read Postgres: an organisation's hash, its epoch, and its `gen`."""

    epoch: UUID | None
    key: bytes
    gen: bytes


class Seen(NamedTuple):
    """The highest total served of a feed, and the epoch in which it was read."""

    epoch: UUID | None
    total: int


class Stamped(NamedTuple):
    """Epoch and server, and what the keys carry of them: None while one of the two is not known."""

    epoch: UUID | None
    server: Server | None
    stamp: str | None


class Revalidation(NamedTuple):
    """The question whether a page is still true, made once and sent often: by the count at which it was made.

    `sealed`: that count as the hash keeps it; `packed`: the whole command.
    """

    stamped: Stamped
    key: bytes
    feed: int
    place: Place
    total: int
    sealed: bytes
    packed: bytes


def split(reply: object) -> tuple[object, object]:
    """Return the sealed count and the entries that `range.lua` returned; an error proves nothing."""
    return (reply[0], reply[1:] and reply[1]) if isinstance(reply, list) else (reply, None)


class CachedFeeds:
    """The cached feeds as one process reads them. An async context manager.

    `read_epoch` asks Postgres for the ledger's epoch (`read_epoch` of writer.sql); it may raise `PostgresAway`.
    """

    def __init__(self, url: str, read_epoch: Callable[[], Awaitable[UUID]], window: int = WINDOW) -> None:
        self.multiplexer = Multiplexer(url, self.learn_epoch)
        self.read_epoch = read_epoch
        self.window = window
        self.epoch: UUID | None = None
        self.ended: UUID | None = None
        self.learning = asyncio.Lock()
        self.seen: OrderedDict[tuple[str, int], Seen] = OrderedDict()
        self.stamped = Stamped(None, None, None)
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.multiplexer.start()
        self.task = asyncio.create_task(self.keep_epoch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.multiplexer.close()

    async def page(self, org_id: str, feed: int, place: Place) -> Hit | Miss:
        """Return what the cache proves to stand at a place of a feed, in one round trip."""
        key, stamped = self.key(org_id), self.stamped
        if key is None:
            return Miss(MissReason.AWAY)
        try:
            sealed, entries = await self.fetch(key, feed, place)
        except FeedsAway:
            return Miss(MissReason.AWAY)
        if stamped is not self.stamp():  # a total of another epoch would pass for one of this
            return Miss(MissReason.AWAY)
        return self.unless_older(org_id, feed, proof.prove(key, feed, sealed, entries, place, window=self.window))

    async def fetch(self, key: bytes, feed: int, place: Place) -> tuple[object, object]:
        """Return a feed's sealed count and the entries at a place, oldest first."""
        keys = [key, proof.list_key(key, feed)]
        if place.skip >= self.window:  # the window holds none of it
            (sealed,) = await self.multiplexer.ask([("HGET", key, feed)], atomic=False)
            return sealed, []
        if place == Place(place.limit, place.skip):
            last = -(place.skip + 1)
            commands: list[Command] = [("HGET", key, feed), ("LRANGE", keys[1], last - place.limit + 1, last)]
            sealed, entries = await self.multiplexer.block(commands)
            return sealed, entries
        return split(await self.multiplexer.run(RANGE, keys, [feed, *place, b""]))

    def check(self, org_id: str, feed: int, place: Place, total: int) -> Revalidation | None:
        """Return the question whether a page made at this count is still true; None while there is no server."""
        key = self.key(org_id)
        if key is None:
            return None
        sealed = proof.seal_count(key, feed, total)
        command = ("EVALSHA", RANGE.digest, 2, key, proof.list_key(key, feed), feed, *place, sealed)
        return Revalidation(self.stamped, key, feed, place, total, sealed, pack(command))

    def is_current(self, check: Revalidation) -> bool:
        """Tell whether a check is of the epoch and the server that the next command goes to."""
        return check.stamped is self.stamp()

    async def revalidate(self, org_id: str, check: Revalidation) -> Hit | Unchanged | Miss:
        """Return `Unchanged` where a page is still true, else what stands in its place: in one round trip.

        The check must be current.
        """
        try:
            [reply] = await self.multiplexer.share(check.packed)
            if is_unknown_script(reply):
                keys = [check.key, proof.list_key(check.key, check.feed)]
                reply = await self.multiplexer.run(RANGE, keys, [check.feed, *check.place, check.sealed])
        except FeedsAway:
            return Miss(MissReason.AWAY)
        if not self.is_current(check):
            return Miss(MissReason.AWAY)
        if isinstance(reply, list) and reply[0] == check.sealed:
            return Miss(MissReason.OLDER) if self.is_older(org_id, check.feed, check.total) else UNCHANGED
        proven = proof.prove(check.key, check.feed, *split(reply), check.place, window=self.window)
        return self.unless_older(org_id, check.feed, proven)

    async def refill(self, org_id: str, feed: int, read_newest: Callable[[], Awaitable[Slice]]) -> Slice:
        """Read a feed from Postgres and put it into the cache; returns what was read last.

        Reads again, three times at most, where something newer may have come while it read. Only what
        `read_newest` raises is raised.
        """
        newest = None
        for _ in range(TRIES):
            fence = await self.fence(org_id, feed)
            newest = await read_newest()
            self.remember(org_id, feed, newest.total, of_epoch=newest.epoch)
            if fence is None or await self.put(fence, feed, newest):
                break
        assert newest is not None
        return newest

    async def fence(self, org_id: str, feed: int) -> Fence | None:
        """Make sure of an organisation's hash before Postgres is read; None if there can be none now."""
        for _ in range(2):
            key, epoch = self.key(org_id), self.epoch
            if key is None:
                return None
            commands: list[Command] = [
                ("HSETNX", key, "gen", token_hex(8)),
                # Never extended: whatever was lost on the way is forgotten after this time.
                ("EXPIRE", key, LIFETIME_S, "NX"),
                ("HGET", key, "gen"),
                ("HGET", key, feed),
            ]
            try:
                *_, gen, sealed = await self.multiplexer.block(commands)
                if isinstance(gen, bytes) and proof.read_count(key, feed, sealed) != Miss(MissReason.CORRUPT):
                    return Fence(epoch, key, gen)
                await self.multiplexer.ask([("UNLINK", key)], atomic=False)
            except FeedsAway:
                return None
        return None

    async def put(self, fence: Fence, feed: int, newest: Slice) -> bool:
        """Put what Postgres said, unless the fence has fallen; True also where there is no use in another try."""
        if newest.epoch != fence.epoch:
            return True
        start = proof.seed(fence.key)
        entries = newest.entries[: self.window][::-1]
        first = newest.total - len(entries) + 1
        lines = [b"%d %s" % (first + i, proof.seal_json(start, json)) for i, json in enumerate(entries)]
        keys = [fence.key, proof.list_key(fence.key, feed)]
        try:
            reply = await self.multiplexer.run(PUT, keys, [fence.gen, feed, newest.total, *lines])
        except FeedsAway:
            tally.refills["away"] += 1
            return True
        tally.refills["refused" if reply != 1 else "put"] += 1
        return reply != 0

    def key(self, org_id: str) -> bytes | None:
        """Return the key of an organisation's hash on the server that the next command goes to."""
        stamped = self.stamp().stamp
        return None if stamped is None else proof.hash_key(stamped, org_id)

    def stamp(self) -> Stamped:
        """Return what all keys carry now: the same object for as long as it is true."""
        server = self.multiplexer.server
        if self.stamped.epoch is not self.epoch or self.stamped.server is not server:
            stamp = None if self.epoch is None or server is None else proof.stamp(self.epoch, server)
            self.stamped = Stamped(self.epoch, server, stamp)
        return self.stamped

    def unless_older(self, org_id: str, feed: int, answer: Hit | Miss) -> Hit | Miss:
        """Return an answer, unless this process has served a newer one."""
        older = answer.total is not None and self.is_older(org_id, feed, answer.total)
        return Miss(MissReason.OLDER) if older else answer

    def is_older(self, org_id: str, feed: int, total: int) -> bool:
        """Tell whether this process has served a newer total of a feed; note this one if not."""
        seen = self.seen.get((org_id, feed))
        if seen is not None and total <= seen.total:
            self.seen.move_to_end((org_id, feed))
            return total < seen.total
        self.remember(org_id, feed, total)
        return False

    def admit(self, org_id: str, feed: int, newest: Slice) -> bool:
        """Note what Postgres said, and tell whether it may be served: not if this process has served a newer page."""
        if newest.epoch == self.ended:
            return False
        seen = self.seen.get((org_id, feed))
        self.remember(org_id, feed, newest.total, of_epoch=newest.epoch)
        return seen is None or seen.epoch != newest.epoch or newest.total >= seen.total

    def remember(self, org_id: str, feed: int, total: int, of_epoch: UUID | None = None) -> None:
        """Note what was served, `of_epoch` if by Postgres. A lower total counts only there, in a new epoch."""
        seen = self.seen.pop((org_id, feed), None)
        if seen is not None and of_epoch in {None, seen.epoch}:
            total = max(total, seen.total)
        self.seen[org_id, feed] = Seen(of_epoch or self.epoch, total)
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)

    async def learn_epoch(self) -> None:
        """Ask Postgres for the epoch; FeedsAway if it has none to tell."""
        async with self.learning:
            try:
                async with asyncio.timeout(EPOCH_WITHIN_S):
                    epoch = await self.read_epoch()
            except (PostgresAway, TimeoutError) as error:
                raise FeedsAway(f"no epoch: {error}") from error
            if epoch != self.epoch:
                self.ended, self.epoch = self.epoch, epoch

    async def keep_epoch(self) -> None:
        """Learn the epoch again and again. While Postgres is down nothing can be committed: the last one holds."""
        while True:
            await asyncio.sleep(EPOCH_EVERY_S)
            with contextlib.suppress(FeedsAway):
                await self.learn_epoch()
