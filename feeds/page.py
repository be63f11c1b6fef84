"""Which slice of which feed does a reader ask for?"""

from collections.abc import Sequence
from typing import NamedTuple

from feeds.movement import USAGE_BORNE, Kind

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
    if kind not in USAGE_BORNE:
        return None
    return 7 + 3 * usage_number + (kind is Kind.OVERFLOW)


def feed_numbers(kind: Kind, usage_number: int | None) -> tuple[int, ...]:
    """Return the numbers of the feeds that a movement belongs to: everything, kind, usage, both."""
    numbers = [feed_number(None, None), feed_number(kind, None)]
    if usage_number is not None:
        numbers += [feed_number(None, usage_number), feed_number(kind, usage_number)]
    return tuple(number for number in numbers if number is not None)


def count_feeds(usage_kinds: Sequence[str]) -> int:
    """Return how many feeds an organisation has."""
    return 6 + 3 * len(usage_kinds)
