"""Where does a page come from?"""

import asyncio
from typing import NamedTuple
from uuid import UUID

from feeds.flight import Flights
from feeds.page import Filter, Place, cut, feed_number
from feeds.postgres import PostgresAway
from feeds.store import Slice, Store, read_place

NEVER = UUID(int=0)
READ_S = 0.9
"""How long a reader waits for Postgres, the wait for an earlier question of the same kind included."""


class Feeds(NamedTuple):
    """What pages are read from."""

    store: Store
    flights: Flights


async def read(feeds: Feeds, org_id: str, feed: Filter, place: Place) -> Slice:
    """Return the lines at a place of an organisation's feed, as they are now. Raises `PostgresAway`."""
    usage_number = feeds.store.usage_numbers[feed.usage_kind] if feed.usage_kind else None
    if feed_number(feed.kind, usage_number) is None:
        return Slice(NEVER, 0, 0, cut(place, 0).newest, [])
    return await read_store(feeds, org_id, feed, place)


async def read_store(feeds: Feeds, org_id: str, feed: Filter, place: Place) -> Slice:
    """Return the lines by Postgres: all who wait for the same ones read once."""
    try:
        async with asyncio.timeout(READ_S):
            return await feeds.flights.share(
                (org_id, feed, place), lambda: read_place(feeds.store, org_id, feed, place)
            )
    except TimeoutError as error:
        raise PostgresAway("no page in time") from error
