"""Where does a page come from: the cache, or Postgres and then the cache?"""

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple
from uuid import UUID

from feeds import counters
from feeds.balance import read_balance, render_balance
from feeds.cached.format import BALANCE, Hit, Miss, MissReason
from feeds.cached.reader import CachedFeeds, Revalidation
from feeds.page import Filter, Place, cut, number_of
from feeds.postgres import PostgresAway
from feeds.single_flight import SingleFlight
from feeds.store import Slice, Store, read_newest, read_place, read_slice

NO_EPOCH = UUID(int=0)
READ_WITHIN_S = 0.9
"""How long one page may wait for Postgres, including the wait for an earlier call with the same key."""
TRIES = 3


class Feeds(NamedTuple):
    """What pages are read from."""

    store: Store
    single_flight: SingleFlight
    cache: CachedFeeds


class FeedId(NamedTuple):
    """One feed of one organisation, by its filter and by its number."""

    org_id: str
    filter: Filter
    number: int


async def read(feeds: Feeds, org_id: str, feed: Filter, place: Place, reply: Hit | Miss | None = None) -> Slice:
    """Return the items at a place of an organisation's feed as they are now: from the cache, else from Postgres.

    Args:
        feeds: What to read from.
        org_id: The organisation that the caller may read.
        feed: Which of its feeds.
        place: Which part of that feed.
        reply: What the cache has just replied, if it was already read.

    Raises:
        PostgresAway: The cache has no valid items, and Postgres gives none in time or only older ones than this process
            has already served.
    """
    # The cache builds its keys before it awaits, and an earlier reply was checked against the current epoch just now.
    epoch = feeds.cache.epochs.current
    number = number_of(feed, feeds.store.usage_numbers)
    if number is None:
        return Slice(NO_EPOCH, 0, 0, [])
    if reply is None:
        reply = await feeds.cache.read(org_id, number, place)
    if isinstance(reply, Hit):
        counters.hits["redis"] += 1
        assert epoch is not None, "without an epoch there is no key"
        return Slice(epoch, reply.total, cut(place, reply.total).newest, reply.items)
    counters.misses[reply.reason] += 1
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            for _ in range(TRIES):
                found = await read_ledger(feeds, FeedId(org_id, feed, number), place, reply)
                if feeds.cache.note_read(org_id, number, found):
                    return found
    except TimeoutError as error:
        raise PostgresAway(f"no items within {READ_WITHIN_S} s") from error
    raise PostgresAway("its items are older than what was served; if it was restored, run `usage-feeds rebuild`")


def make_revalidation(  # noqa: PLR0913, PLR0917 -- the request, and the moment of the page
    feeds: Feeds, org_id: str, feed: Filter, place: Place, epoch: UUID, total: int
) -> Revalidation | None:
    """Return the request that asks Redis whether a page is still current; None while Redis cannot answer it."""
    number = number_of(feed, feeds.store.usage_numbers)
    if number is None or epoch != feeds.cache.epochs.current:
        return None
    return feeds.cache.make_revalidation(org_id, number, place, total)


async def read_ledger(feeds: Feeds, feed: FeedId, place: Place, miss: Miss) -> Slice:
    """Return the items at a place after a miss, read once for all concurrent callers.

    Refills the cached feed first, unless Redis is away or the page lies beyond the cached window. Raises
    `PostgresAway`.
    """
    store, run = feeds.store, feeds.single_flight.run

    def read_here() -> Awaitable[Slice]:
        return read_place(store, feed.org_id, feed.filter, place)

    if miss.reason is MissReason.AWAY:
        return await run((feed, place), read_here)
    epoch = feeds.cache.epochs.current
    if miss.reason is MissReason.BEYOND and miss.total is not None and epoch is not None:
        newest = Slice(epoch, miss.total, miss.total, [])  # at the cached count, so that this page fits the newer ones
    else:
        newest = await run(feed, lambda: refill(feeds, feed))
    total, span = newest.total, cut(place, newest.total)
    if span.newest == span.below or span.below >= total - len(newest.items):
        return newest._replace(newest=span.newest, items=newest.items[total - span.newest : total - span.below])
    older = await run((feed, span), lambda: read_slice(store, feed.org_id, feed.filter, span.below + 1, span.newest))
    if older.epoch != newest.epoch or older.total < total:  # Postgres was restored meanwhile
        return await run((feed, place), read_here)
    return older._replace(total=total)


async def refill(feeds: Feeds, feed: FeedId) -> Slice:
    """Read a feed's newest items from Postgres, put them into the cache, and return them.

    Reads again if something newer may have been published meanwhile. Raises `PostgresAway`.
    """
    cache, (org_id, filter_, number) = feeds.cache, feed
    epoch = cache.epochs.current
    reply = await cache.read(org_id, number, Place(cache.window))
    if isinstance(reply, Hit) and epoch is not None:  # another process has just refilled it
        return Slice(epoch, reply.total, reply.total, reply.items)
    for _ in range(TRIES):
        fence = await cache.fence(org_id, number)
        newest = await read_newest(feeds.store, org_id, filter_, cache.window)
        cache.note_read(org_id, number, newest)
        if fence is None or await cache.put(fence, number, newest):
            break
    return newest


async def read_current_balance(feeds: Feeds, org_id: str) -> bytes:
    """Return the JSON of an organisation's balance as it is now: from the cache, else from Postgres.

    Raises `PostgresAway` if the cache has none, and Postgres gives none in time.
    """
    reply = await feeds.cache.read_balance(org_id)
    if isinstance(reply, Hit):
        counters.hits["redis"] += 1
        return reply.items[0]
    counters.misses[reply.reason] += 1
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            for _ in range(TRIES):
                found = await feeds.single_flight.run((org_id, BALANCE), lambda: refill_balance(feeds, org_id))
                if feeds.cache.note_read(org_id, BALANCE, found):
                    return found.items[0]
    except TimeoutError as error:
        raise PostgresAway(f"no balance within {READ_WITHIN_S} s") from error
    raise PostgresAway("its balance is older than what was served; if it was restored, run `usage-feeds rebuild`")


async def refill_balance(feeds: Feeds, org_id: str) -> Slice:
    """Read a balance from Postgres, put it into the cache, and return it as the feed `BALANCE`. Raises `PostgresAway`.

    Reads again if something newer may have been published meanwhile.
    """
    for _ in range(TRIES):
        fence = await feeds.cache.fence(org_id, BALANCE)
        found = await read_balance(feeds.store.postgres, org_id)
        count = found.revision + 1
        newest = Slice(found.epoch, count, count, [render_balance(found)])
        if fence is None or await feeds.cache.put_balance(fence, newest, found.true_for_s):
            break
    return newest
