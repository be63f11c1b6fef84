"""How does the endpoint read cached feeds, and put a feed into the cache?"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from secrets import token_hex
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

from feeds import counters
from feeds.background import repeat
from feeds.bounded_map import BoundedMap
from feeds.cached.epoch import LEARN_EVERY_S, EpochTracker, Stamp
from feeds.cached.format import (
    BALANCE,
    ITEM_PREFIX_BYTES,
    LIFETIME_S,
    UNCHANGED,
    WINDOW,
    FeedsAway,
    Hit,
    Miss,
    MissReason,
    Unchanged,
    hash_key,
    list_key,
    read_count,
    seal_count,
    seal_item,
    seed,
    validate,
)
from feeds.cached.highest_served import HighestServed
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.protocol import pack
from feeds.cached.scripts import PUT, RANGE, Command, is_unknown_script
from feeds.page import Place
from feeds.store import Slice

BALANCES_MAX = 2048
"""Of how many organisations a process remembers the last balance."""


class Fence(NamedTuple):
    """What was true of an organisation's hash before Postgres was read: its epoch, its key and its `gen`.

    `put` refuses a slice if the hash was lost or replaced since. `at_ms` is that moment on Redis's clock.
    """

    epoch: UUID | None
    key: bytes
    gen: bytes
    at_ms: int


class Revalidation(NamedTuple):
    """The request "is this page still current?": built once for a page, sent each time the page is requested again.

    `sealed` is the page's count as the hash holds it; `packed` is the whole command.
    """

    stamp: Stamp
    key: bytes
    feed: int
    place: Place
    total: int
    sealed: bytes
    packed: bytes


NEWEST = Place(1)


class KnownBalance:
    """The request for an organisation's balance, packed once, the last reply to it, and what the reply means."""

    def __init__(self, stamp: Stamp, key: bytes) -> None:
        self.stamp = stamp
        self.keys = [key, list_key(key, BALANCE)]
        self.packed = pack(("EVALSHA", RANGE.digest, 2, *self.keys, BALANCE, *NEWEST, b""))
        self.reply: object = None
        self.answer: Hit | Miss | None = None


def split_reply(reply: object) -> tuple[object, object]:
    """Return the sealed count and the items of `range.lua`'s reply. An error reply is not a valid count."""
    return (reply[0], reply[1:] and reply[1]) if isinstance(reply, list) else (reply, None)


class CachedFeeds:
    """The cached feeds as one endpoint process reads them. An async context manager.

    Args:
        url: The address of the feeds' Redis.
        fetch_epoch: Reads the ledger's epoch from Postgres; it may raise `PostgresAway`.
        window: How many of its newest items a cached feed holds.
    """

    def __init__(self, url: str, fetch_epoch: Callable[[], Awaitable[UUID]], window: int = WINDOW) -> None:
        self.multiplexer = Multiplexer(url, self.learn_epoch)
        self.epochs = EpochTracker(fetch_epoch, self.multiplexer)
        self.highest_served = HighestServed()
        self.window = window
        self._balances: BoundedMap[str, KnownBalance] = BoundedMap(BALANCES_MAX)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.multiplexer.start()
        self._task = asyncio.create_task(repeat("learning the epoch", self.epochs.learn_or_keep, LEARN_EVERY_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.multiplexer.close()

    async def learn_epoch(self) -> None:
        """Read the epoch before a new connection is used: another server may hold feeds of an older one."""
        await self.epochs.learn()

    async def read(self, org_id: str, feed: int, place: Place) -> Hit | Miss:
        """Return the valid items at a place of a feed, in one round trip, or why there are none."""
        stamp = self.epochs.stamp()
        if stamp.digest is None:
            return Miss(MissReason.AWAY)
        key = hash_key(stamp.digest, org_id)
        try:
            sealed, items = await self._fetch(key, feed, place)
        except FeedsAway:
            return Miss(MissReason.AWAY)
        if stamp is not self.epochs.stamp():  # the reply is of another epoch or server
            return Miss(MissReason.AWAY)
        return self._unless_older(org_id, feed, validate(key, feed, sealed, items, place, window=self.window))

    async def read_balance(self, org_id: str) -> Hit | Miss:
        """Return the balance as the one item of its feed, or why there is none. Concurrent callers share one command.

        While Redis replies the same, the same answer is returned, and not validated again.
        """
        stamp = self.epochs.stamp()
        if stamp.digest is None:
            return Miss(MissReason.AWAY)
        known = self._balances.get(org_id)
        if known is None or known.stamp is not stamp:
            known = KnownBalance(stamp, hash_key(stamp.digest, org_id))
            self._balances.store(org_id, known)
        try:
            [reply] = await self.multiplexer.send_shared(known.packed)
            if is_unknown_script(reply):
                reply = await self.multiplexer.run_script(RANGE, known.keys, [BALANCE, *NEWEST, b""])
        except FeedsAway:
            return Miss(MissReason.AWAY)
        if stamp is not self.epochs.stamp():
            return Miss(MissReason.AWAY)
        if known.answer is None or reply != known.reply:
            found = validate(known.keys[0], BALANCE, *split_reply(reply), NEWEST, window=self.window)
            if isinstance(found, Hit):
                found = Hit(found.total, [item[len(ITEM_PREFIX_BYTES) :] for item in found.items])
            known.reply, known.answer = reply, found
        return self._unless_older(org_id, BALANCE, known.answer)

    async def _fetch(self, key: bytes, feed: int, place: Place) -> tuple[object, object]:
        """Return a feed's sealed count and the items at a place, oldest first."""
        keys = [key, list_key(key, feed)]
        if place.skip >= self.window:  # the window holds none of it
            (sealed,) = await self.multiplexer.send([("HGET", key, feed)], atomic=False)
            return sealed, []
        if place == Place(place.limit, place.skip):
            last = -(place.skip + 1)
            commands: list[Command] = [("HGET", key, feed), ("LRANGE", keys[1], last - place.limit + 1, last)]
            sealed, items = await self.multiplexer.run_block(commands)
            return sealed, items
        return split_reply(await self.multiplexer.run_script(RANGE, keys, [feed, *place, b""]))

    def make_revalidation(self, org_id: str, feed: int, place: Place, total: int) -> Revalidation | None:
        """Return the request whether a page made at count `total` is current; None while no server is known."""
        stamp = self.epochs.stamp()
        if stamp.digest is None:
            return None
        key = hash_key(stamp.digest, org_id)
        sealed = seal_count(key, feed, total)
        command = ("EVALSHA", RANGE.digest, 2, key, list_key(key, feed), feed, *place, sealed)
        return Revalidation(stamp, key, feed, place, total, sealed, pack(command))

    def has_current_stamp(self, revalidation: Revalidation) -> bool:
        """Tell whether a revalidation is of the epoch and the server that the next command goes to."""
        return revalidation.stamp is self.epochs.stamp()

    async def revalidate(self, org_id: str, revalidation: Revalidation) -> Hit | Unchanged | Miss:
        """Return `Unchanged` if the page is current, else what is there now, in one round trip.

        `has_current_stamp` must hold.
        """
        key, feed = revalidation.key, revalidation.feed
        try:
            [reply] = await self.multiplexer.send_shared(revalidation.packed)
            if is_unknown_script(reply):
                keys = [key, list_key(key, feed)]
                reply = await self.multiplexer.run_script(RANGE, keys, [feed, *revalidation.place, revalidation.sealed])
        except FeedsAway:
            return Miss(MissReason.AWAY)
        if not self.has_current_stamp(revalidation):
            return Miss(MissReason.AWAY)
        if isinstance(reply, list) and reply[0] == revalidation.sealed:
            is_older = self.highest_served.is_older(org_id, feed, revalidation.total, self.epochs.current)
            return Miss(MissReason.OLDER) if is_older else UNCHANGED
        found = validate(key, feed, *split_reply(reply), revalidation.place, window=self.window)
        return self._unless_older(org_id, feed, found)

    def note_read(self, org_id: str, feed: int, found: Slice) -> bool:
        """Note what Postgres gave, and tell whether it may be served: not if a newer page was served before."""
        if found.epoch == self.epochs.ended:
            return False
        return self.highest_served.note_read(org_id, feed, found.total, found.epoch)

    async def fence(self, org_id: str, feed: int) -> Fence | None:
        """Make sure that an organisation's hash exists, before Postgres is read; None if there can be none now."""
        for _ in range(2):
            stamp = self.epochs.stamp()
            if stamp.digest is None:
                return None
            key = hash_key(stamp.digest, org_id)
            commands: list[Command] = [
                ("HSETNX", key, "gen", token_hex(8)),
                # Never extended: if an append is lost, the feed is wrong for at most this long.
                ("EXPIRE", key, LIFETIME_S, "NX"),
                ("HGET", key, "gen"),
                ("HGET", key, feed),
                ("TIME",),
            ]
            try:
                *_, gen, sealed, clock = await self.multiplexer.run_block(commands)
                is_usable = read_count(key, feed, sealed) != Miss(MissReason.CORRUPT)
                if is_usable and isinstance(gen, bytes) and isinstance(clock, list):
                    return Fence(stamp.epoch, key, gen, int(clock[0]) * 1000 + int(clock[1]) // 1000)
                await self.multiplexer.send([("UNLINK", key)], atomic=False)
            except FeedsAway:
                return None
        return None

    async def put(self, fence: Fence, feed: int, newest: Slice, true_for_s: float | None = None) -> bool:
        """Put the newest items of a feed into the cache. Returns whether the caller is done.

        They are true for so many seconds from the fence on; for ever without this.

        It is not done if the hash has changed since the fence or holds a newer count: then it reads Postgres again.
        It is done without a put if the slice is of another epoch or Redis is away.
        """
        if newest.epoch != fence.epoch:
            return True  # not put: readers of the slice's epoch do not read this key
        start = seed(fence.key)
        items = newest.items[: self.window][::-1]
        first = newest.total - len(items) + 1
        sealed = [b"%d %s" % (first + i, seal_item(start, item)) for i, item in enumerate(items)]
        keys = [fence.key, list_key(fence.key, feed)]
        until = "" if true_for_s is None else fence.at_ms + int(true_for_s * 1000)
        try:
            reply = await self.multiplexer.run_script(PUT, keys, [fence.gen, feed, newest.total, until, *sealed])
        except FeedsAway:
            counters.refills["away"] += 1
            return True
        counters.refills["refused" if reply != 1 else "put"] += 1
        return reply != 0

    async def put_balance(self, fence: Fence, balance: Slice, true_for_s: float | None) -> bool:
        """Put a balance, the one item of its feed, into the cache as `put` does."""
        items = [ITEM_PREFIX_BYTES + item for item in balance.items]  # `put` leaves this out again
        return await self.put(fence, BALANCE, balance._replace(items=items), true_for_s)

    def _unless_older(self, org_id: str, feed: int, answer: Hit | Miss) -> Hit | Miss:
        """Return an answer, unless this process has served a newer one."""
        if answer.total is None:
            return answer
        is_older = self.highest_served.is_older(org_id, feed, answer.total, self.epochs.current)
        return Miss(MissReason.OLDER) if is_older else answer
