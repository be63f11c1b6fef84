"""Which slice of which feed does a reader ask for?"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feeds.movement import USAGE_CAUSED, Kind

KINDS = tuple(Kind)
EVERYTHING = 0
"""The number of the feed that no filter narrows: its ordinal is the position."""


class Filter(NamedTuple):
    """What narrows an organisation's movements to one feed."""

    kind: Kind | None = None
    usage_kind: str | None = None


def feed_number(kind: Kind | None, usage_number: int | None) -> int | None:
    """Return the stable number of a feed within its organisation, or None for one always empty.

    0 is everything, 1 to 5 one kind each; every usage kind (numbered from 0 in the order in which
    the ledger learned them) adds three: all of it, its consume lines, its overflow lines. An
    organisation's counts are kept in a list under these numbers.
    """
    if usage_number is None:
        return KINDS.index(kind) + 1 if kind else EVERYTHING
    if kind is None:
        return 6 + 3 * usage_number
    if kind not in USAGE_CAUSED:
        return None
    return 7 + 3 * usage_number + (kind is Kind.OVERFLOW)


def number_of(feed: Filter, usage_numbers: Mapping[str, int]) -> int | None:
    """Return the number of the feed that a filter names, or None for one always empty."""
    return feed_number(feed.kind, usage_numbers[feed.usage_kind] if feed.usage_kind else None)


def filter_of(number: int, usage_kinds: Sequence[str]) -> Filter:
    """Return the filter that a feed's number stands for: the inverse of `number_of`."""
    if number <= len(KINDS):
        return Filter(KINDS[number - 1] if number else None)
    usage_number, shape = divmod(number - 6, 3)
    return Filter((None, Kind.CONSUME, Kind.OVERFLOW)[shape], usage_kinds[usage_number])


def feed_numbers(kind: Kind, usage_number: int | None) -> tuple[int, ...]:
    """Return the numbers of the feeds that a movement belongs to: everything, kind, usage, both."""
    numbers = [feed_number(None, None), feed_number(kind, None)]
    if usage_number is not None:
        numbers += [feed_number(None, usage_number), feed_number(kind, usage_number)]
    return tuple(number for number in numbers if number is not None)


def count_feeds(usage_kinds: Sequence[str]) -> int:
    """Return how many feeds an organisation has."""
    return 6 + 3 * len(usage_kinds)


class Place(NamedTuple):
    """Where a page is cut from a feed, whatever its count turns out to be.

    At most `limit` of the newest lines that are left when the `skip` newest, those above the ordinal
    `ceiling` and those up to the ordinal `floor` are taken away.
    """

    limit: int
    skip: int = 0
    ceiling: int = 2**62
    floor: int = 0


class Span(NamedTuple):
    """The ordinals of a page: `below` (excluded) to `newest` (included). Equal where the page is empty."""

    newest: int
    below: int


def place_page(number: int, limit: int) -> Place:
    """Return where the numbered page is, counted from 1 at the newest line."""
    return Place(limit, skip=(number - 1) * limit)


def cut(place: Place, count: int) -> Span:
    """Return the ordinals that a page has in a feed of `count` lines."""
    newest = max(min(count - place.skip, place.ceiling, count), 0)
    below = max(newest - place.limit, min(place.floor, newest))
    return Span(newest, max(below, 0))


def count_pages(count: int, limit: int) -> int:
    """Return how many pages a feed has."""
    return -(-count // limit)


def page_number(span: Span, count: int, limit: int) -> int:
    """Return the number of the page on which a span's first line stands; the one past the end if it has none."""
    if span.newest == 0:
        return count_pages(count, limit) + 1
    return (count - span.newest) // limit + 1
