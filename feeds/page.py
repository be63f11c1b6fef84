"""Which slice of which feed does a request name?"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feeds.movement import USAGE_CAUSED, Kind

KINDS = tuple(Kind)
EVERYTHING = 0
"""The number of the feed without a filter: its ordinals are the positions."""


class Filter(NamedTuple):
    """What narrows an organisation's movements to one feed."""

    kind: Kind | None = None
    usage_kind: str | None = None


def feed_number(kind: Kind | None, usage_number: int | None) -> int | None:
    """Return the fixed number of a feed within its organisation, or None for a feed that is always empty.

    0 is everything; 1 to 5 are the kinds. Each usage kind (numbered from 0 in the order in which the ledger learned
    them) adds three: all of its movements, its consume movements, its overflow movements. An organisation's counts are
    an array that these numbers index.
    """
    if usage_number is None:
        return KINDS.index(kind) + 1 if kind else EVERYTHING
    if kind is None:
        return 6 + 3 * usage_number
    if kind not in USAGE_CAUSED:
        return None
    return 7 + 3 * usage_number + (kind is Kind.OVERFLOW)


def number_of(feed: Filter, usage_numbers: Mapping[str, int]) -> int | None:
    """Return the number of the feed that a filter names, or None for a feed that is always empty."""
    return feed_number(feed.kind, usage_numbers[feed.usage_kind] if feed.usage_kind else None)


def filter_of(number: int, usage_kinds: Sequence[str]) -> Filter:
    """Return the filter that a feed's number stands for: the inverse of `number_of`."""
    if number <= len(KINDS):
        return Filter(KINDS[number - 1] if number else None)
    usage_number, shape = divmod(number - 6, 3)
    return Filter((None, Kind.CONSUME, Kind.OVERFLOW)[shape], usage_kinds[usage_number])


def feed_numbers(kind: Kind, usage_number: int | None) -> tuple[int, ...]:
    """Return the numbers of the feeds that a movement belongs to: everything, its kind, its usage kind, and both."""
    numbers = [feed_number(None, None), feed_number(kind, None)]
    if usage_number is not None:
        numbers += [feed_number(None, usage_number), feed_number(kind, usage_number)]
    return tuple(number for number in numbers if number is not None)


def count_feeds(usage_kinds: Sequence[str]) -> int:
    """Return how many feeds an organisation has."""
    return 6 + 3 * len(usage_kinds)


class Place(NamedTuple):
    """Which part of a feed a page is, for any count that the feed may have.

    Leave out the `skip` newest movements, those above the ordinal `ceiling`, and those up to the ordinal `floor`. The
    page is the newest movements that are left, at most `limit` of them.
    """

    limit: int
    skip: int = 0
    ceiling: int = 2**62
    floor: int = 0


class Span(NamedTuple):
    """The ordinals of a page: from `newest` (included) down to `below` (excluded). Both are equal for an empty page."""

    newest: int
    below: int


def place_page(number: int, limit: int) -> Place:
    """Return the place of a numbered page. Page 1 holds the newest movements."""
    return Place(limit, skip=(number - 1) * limit)


def cut(place: Place, count: int) -> Span:
    """Return the ordinals that a page has in a feed of `count` movements."""
    newest = max(min(count - place.skip, place.ceiling, count), 0)
    below = max(newest - place.limit, min(place.floor, newest))
    return Span(newest, max(below, 0))


def count_pages(count: int, limit: int) -> int:
    """Return how many pages a feed of `count` movements has."""
    return -(-count // limit)


def page_number(span: Span, count: int, limit: int) -> int:
    """Return the number of the page that holds a span's newest movement; one past the last page if there is none."""
    if span.newest == 0:
        return count_pages(count, limit) + 1
    return (count - span.newest) // limit + 1
