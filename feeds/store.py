"""Which items does a page hold, according to the ledger in Postgres?"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from feeds.movement import KIND_OF_LETTER, Movement, render_item
from feeds.page import Filter, Place, cut, number_of
from feeds.postgres import Postgres, PostgresAway, Row
from feeds.queries import load_queries

SQL = load_queries(__file__)


class TornLedger(PostgresAway):
    """The ordinals of a feed have a gap, so no page is made of them. Run `usage-feeds verify`."""


class Store(NamedTuple):
    """Where movements are read. `usage_numbers` is that of `feeds.schema.Ledger`."""

    postgres: Postgres
    usage_numbers: Mapping[str, int]


class Slice(NamedTuple):
    """Part of a feed at one moment.

    `items` are newest first: the first has the ordinal `newest`, each later one is one less. `total` is the feed's
    count; `epoch` is the ledger's.
    """

    epoch: UUID
    total: int
    newest: int
    items: list[bytes]


async def read_place(store: Store, org_id: str, feed: Filter, place: Place) -> Slice:
    """Return the items at a place, which depends on the feed's count at this moment, in one round trip.

    The feed must have a number: `feeds.page.number_of` is not None. Raises `PostgresAway`.
    """
    query, parameters = page_query(store.usage_numbers, org_id, feed, place)
    return collect_slice(place, await store.postgres.fetch(query, parameters, org_id=org_id))


async def read_slice(store: Store, org_id: str, feed: Filter, first: int, last: int) -> Slice:
    """Return the items with the ordinals `first` to `last`, as far as they exist. Raises `PostgresAway`."""
    place = Place(last - first + 1, ceiling=last, floor=first - 1)
    return await read_place(store, org_id, feed, place)


async def read_newest(store: Store, org_id: str, feed: Filter, window: int) -> Slice:
    """Return the newest `window` items. Raises `PostgresAway`."""
    return await read_place(store, org_id, feed, Place(window))


def page_query(
    usage_numbers: Mapping[str, int], org_id: str, feed: Filter, place: Place
) -> tuple[bytes, dict[str, Any]]:
    """Return the query for a page and its parameters. `collect_slice` reads its rows."""
    number = number_of(feed, usage_numbers)
    if number is None:
        raise ValueError(feed)
    parameters = {
        "org_id": org_id,
        "kind": feed.kind.letter if feed.kind else None,
        "usage_number": usage_numbers[feed.usage_kind] if feed.usage_kind else None,
        "element": number + 1,
        "limit": place.limit,
        "skip": place.skip,
        "ceiling": place.ceiling,
        "floor": place.floor,
    }
    return SQL["read_page"], parameters


def collect_slice(place: Place, rows: list[Row]) -> Slice:
    """Return the slice that the rows of `read_page` hold.

    Raises `TornLedger` unless the rows have every ordinal of the place once, and `PostgresAway` if the ledger is empty.
    """
    if not rows:
        raise PostgresAway("the ledger's row is missing")
    epoch, total = rows[0][:2]
    movements = [row[2:] for row in rows if row[2] is not None]
    span = cut(place, total)
    if [ordinal for ordinal, *_ in movements] != list(range(span.newest, span.below, -1)):
        raise TornLedger(f"the ordinals {span.below + 1} to {span.newest} are not there once each")
    return Slice(epoch, total, span.newest, [render_row(movement) for movement in movements])


def render_row(movement: Row) -> bytes:
    """Return the item of one movement, given its columns of `read_page`."""
    _, movement_hash, kind, credit, usage_kind, usage_ref, created_at = movement
    return render_item(Movement(KIND_OF_LETTER[kind], credit, usage_kind, usage_ref, created_at, hash=movement_hash))
