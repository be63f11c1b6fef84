"""Which lines does a page hold, by the ledger itself?"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from feeds.movement import KIND_OF_LETTER, Movement, render
from feeds.page import Filter, Place, cut, number_of
from feeds.postgres import Postgres, PostgresAway, Row
from feeds.queries import load_queries

SQL = load_queries(__file__)


class TornLedger(PostgresAway):
    """The ordinals of a feed have a gap. Run `usage-feeds verify`; no page is made of such lines."""


class Store(NamedTuple):
    """Where lines are read. `usage_numbers` as in `feeds.schema.Ledger`."""

    postgres: Postgres
    usage_numbers: Mapping[str, int]


class Slice(NamedTuple):
    """Part of a feed, at one moment.

    `items` are the JSON of its lines, newest first; the first has the ordinal `newest`, each later one
    less. `total` counts the feed's lines; `epoch` is the ledger's.
    """

    epoch: UUID
    total: int
    newest: int
    items: list[bytes]


async def read_place(store: Store, org_id: str, feed: Filter, place: Place) -> Slice:
    """Return a page, wherever the count of this moment puts it, in one round trip. Raises `PostgresAway`.

    `feed` must be one that can have lines: `feed_number` is not None.
    """
    return collect_slice(place, await store.postgres.fetch(*page_query(store.usage_numbers, org_id, feed, place), org_id=org_id))


def page_query(usage_numbers: Mapping[str, int], org_id: str, feed: Filter, place: Place) -> tuple[bytes, dict[str, Any]]:
    """Return the query that finds a page, and its parameters; `collect_slice` reads its rows."""
    number = number_of(feed, usage_numbers)
    if number is None:
        raise ValueError(feed)
    parameters = {
        "org_id": org_id,
        "kind": feed.kind.letter if feed.kind else None,
        "usage_number": usage_numbers[feed.usage_kind] if feed.usage_kind else None,
        "element": number + 1,
        "lines": place.limit,
        "skip": place.skip,
        "ceiling": place.ceiling,
        "floor": place.floor,
    }
    return SQL["read_page"], parameters


async def read_slice(store: Store, org_id: str, feed: Filter, first: int, last: int) -> Slice:
    """Return the lines with the ordinals `first` to `last`, those that exist. Raises `PostgresAway`."""
    place = Place(last - first + 1, ceiling=last, floor=first - 1)
    return await read_place(store, org_id, feed, place)


async def read_newest(store: Store, org_id: str, feed: Filter, window: int) -> Slice:
    """Return the newest `window` lines. Raises `PostgresAway`."""
    return await read_place(store, org_id, feed, Place(window))


def collect_slice(place: Place, rows: list[Row]) -> Slice:
    """Return the slice that the rows of `read_page` hold, once they prove dense."""
    if not rows:
        raise PostgresAway("the ledger has no facts")
    epoch, total = rows[0][:2]
    lines = [row[2:] for row in rows if row[2] is not None]
    span = cut(place, total)
    if [line[0] for line in lines] != list(range(span.newest, span.below, -1)):
        raise TornLedger(f"ordinals {span.below + 1} to {span.newest} are not all there, each once")
    return Slice(epoch, total, span.newest, [render_row(line) for line in lines])


def render_row(line: Row) -> bytes:
    """Return the JSON of one row's line."""
    _, movement_id, kind, credit, usage_kind, usage_ref, created_at = line
    return render(Movement(movement_id, KIND_OF_LETTER[kind], credit, usage_kind, usage_ref, created_at, {}))
