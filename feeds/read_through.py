"""Where does a page come from?"""

import asyncio
from typing import NamedTuple
from uuid import UUID

from feeds import counters as tally
from feeds.cached.format import Hit, Miss, MissReason
from feeds.cached.reader import CachedFeeds, Revalidation
from feeds.page import Filter, Place, cut, feed_number
from feeds.postgres import PostgresAway
from feeds.single_flight import SingleFlight
from feeds.store import Slice, Store, read_newest, read_place, read_slice

NEVER = UUID(int=0)
READ_S = 0.9
"""How long a reader waits for Postgres, the wait for an earlier question of the same kind included."""
TRIES = 3


class Feeds(NamedTuple):
    """What pages are read from."""

    store: Store
    single_flight: SingleFlight
    cache: CachedFeeds


async def read(feeds: Feeds, org_id: str, feed: Filter, place: Place, answer: Hit | Miss | None = None) -> Slice:
    """Return the lines at a place of an organisation's feed as they are now.

    From the cache in one round trip, else from Postgres; `answer` is what the cache has just said, if it was asked.
    Raises `PostgresAway`.
    """
    epoch = feeds.cache.epoch  # the cache builds its keys before it waits for anything: they are of this epoch
    number = feed_number(feed.kind, feeds.store.usage_numbers[feed.usage_kind] if feed.usage_kind else None)
    if number is None:
        return Slice(NEVER, 0, 0, [])
    if answer is None:
        answer = await feeds.cache.page(org_id, number, place)
    if isinstance(answer, Hit):
        tally.hits["redis"] += 1
        assert epoch is not None, "without an epoch there is no key"
        return Slice(epoch, answer.total, cut(place, answer.total).newest, answer.entries)
    tally.misses[answer.reason] += 1
    try:
        async with asyncio.timeout(READ_S):
            for _ in range(TRIES):
                found = await read_ledger(feeds, org_id, feed, number, place, answer)
                if feeds.cache.admit(org_id, number, found):
                    break
            return found
    except TimeoutError as error:
        raise PostgresAway("no page in time") from error


def check_page(  # noqa: PLR0913, PLR0917 -- what was asked, and the moment of the answer
    feeds: Feeds, org_id: str, feed: Filter, place: Place, epoch: UUID, total: int
) -> Revalidation | None:
    """Return the question whether a page is still true; None while the cache cannot answer it."""
    number = feed_number(feed.kind, feeds.store.usage_numbers[feed.usage_kind] if feed.usage_kind else None)
    if number is None or epoch != feeds.cache.epoch:
        return None
    return feeds.cache.check(org_id, number, place, total)


async def read_ledger(  # noqa: PLR0913, PLR0917 -- what was asked, and what the cache said
    feeds: Feeds, org_id: str, feed: Filter, number: int, place: Place, missed: Miss
) -> Slice:
    """Return the lines by Postgres, read once for all who wait for them; the newest go into the cache."""
    store, share = feeds.store, feeds.single_flight.share
    if missed.reason is MissReason.AWAY:
        return await share((org_id, feed, place), lambda: read_place(store, org_id, feed, place))
    epoch = feeds.cache.epoch
    if missed.reason is MissReason.BEYOND and missed.total is not None and epoch is not None:
        newest = Slice(epoch, missed.total, missed.total, [])  # the count of the newer pages, for this one too
    else:
        newest = await share((org_id, number), lambda: fill(feeds, org_id, feed, number))
    total, span = newest.total, cut(place, newest.total)
    if span.newest == span.below or span.below >= total - len(newest.entries):
        return newest._replace(newest=span.newest, entries=newest.entries[total - span.newest : total - span.below])
    older = await share(
        (org_id, feed, span), lambda: read_slice(store, org_id, feed, first=span.below + 1, last=span.newest)
    )
    if older.epoch != newest.epoch or older.total < total:  # Postgres was restored meanwhile
        return await share((org_id, feed, place), lambda: read_place(store, org_id, feed, place))
    return older._replace(total=total)


async def fill(feeds: Feeds, org_id: str, feed: Filter, number: int) -> Slice:
    """Return the newest lines of a feed that the cache lacks, and put them there; another may just have done so."""
    window, epoch = feeds.cache.window, feeds.cache.epoch
    answer = await feeds.cache.page(org_id, number, Place(window))
    if isinstance(answer, Hit) and epoch is not None:
        return Slice(epoch, answer.total, answer.total, answer.entries)
    return await feeds.cache.refill(org_id, number, lambda: read_newest(feeds.store, org_id, feed, window))
