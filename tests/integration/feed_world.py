"""A ledger made by the pure posting rules only, and the pages that it must give."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from feeds.movement import Kind, format_time
from feeds.page import Filter
from tests.histories import organisation, terms
from worker.events import EventRefused, check_event
from worker.ledger.posting import post

FILTERS = [Filter(kind, usage_kind) for kind in (None, *Kind) for usage_kind in (None, "ai_usage", "tm_usage")]


class PageRead(NamedTuple):
    """A page that was read: its ordinals from `newest` down to `below` (excluded), and its `pages` object."""

    org: int
    feed: Filter
    limit: int
    newest: int
    below: int
    pages: dict


@dataclass
class WaitingEvent:
    """An event in its stream. If it was buried, it is not posted when it is read again."""

    event: object
    is_buried: bool = False


@dataclass
class Ledger:
    """One organisation's ledger.

    `moments` are the positions up to which a page may go: the position after the last published batch, and those after
    each batch that was committed since. `served` holds the highest total that was served of each feed.
    """

    org_id: str
    state: object = None
    waiting: list = field(default_factory=list)
    moments: list = field(default_factory=lambda: [0])
    served: dict = field(default_factory=dict)
    ids: dict = field(default_factory=dict)

    def __post_init__(self):
        self.state = organisation(self.org_id)

    def add(self, event):
        self.waiting.append(WaitingEvent(check_event(event)))

    def post(self, now, *, is_published):
        """Post the waiting events. If they are not published, they keep waiting and are posted again."""
        for one in self.waiting:
            if one.is_buried:
                continue
            try:
                post(one.event, self.state, terms(now), datetime.now(UTC))
            except EventRefused:
                one.is_buried = True
        position = len(self.state.movements)
        if is_published:
            self.waiting.clear()
            self.moments = [position]
        else:
            self.moments.append(position)

    def movements(self, feed, position=None):
        """Return a feed's movements up to a position, oldest first."""
        return [
            movement
            for movement in self.state.movements[:position]
            if feed.kind in {None, movement.kind} and feed.usage_kind in {None, movement.usage_kind}
        ]

    def check(self, page, read, direction="next"):
        """Assert that a page has the ordinals of `read` at one of the moments, and is not older than one served before.

        `direction` is the one in which a cursor was followed; None for a numbered page.
        """
        pages, feed = page["pages"], read.feed
        total = pages["total_items"]
        allowed = {len(self.movements(feed, position)) for position in self.moments}
        assert total in allowed, (total, allowed)
        assert total >= self.served.get(feed, 0)
        self.served[feed] = total
        assert [self.check_id(item) for item in page["items"]] == [
            item_without_id(movement) for movement in reversed(self.movements(feed)[read.below : read.newest])
        ]
        number = (total - read.newest) // read.limit + 1 if read.newest else -(-total // read.limit) + 1
        assert pages["page"] == (pages["page"] if direction is None else number)
        assert (pages["limit"], pages["total_pages"]) == (read.limit, -(-total // read.limit))
        has_next, has_prev = read.below > 0, read.newest < total
        assert (pages["has_next"], pages["has_prev"]) == (has_next, has_prev)
        assert (pages["next_cursor"] is not None, pages["prev_cursor"] is not None) == (has_next, has_prev)
        assert pages["direction"] == (direction or "next")

    def check_id(self, item):
        """Assert that an item has the id that its movement had before, and return the item without it."""
        item = dict(item)
        key = (item["usage_ref"], item["kind"])
        assert self.ids.setdefault(key, item["id"]) == item["id"]
        assert (item.pop("object"), item.pop("id")[:5]) == ("credit_entry", "cent_")
        return item


def item_without_id(movement):
    """Return the item of a movement, without its id, which the rules do not decide."""
    usage_kind = {"usage_kind": movement.usage_kind} if movement.usage_kind else {}
    return {
        "kind": movement.kind.value,
        "credits": movement.credits,
        "usage_ref": movement.usage_ref,
        "created_at": format_time(movement.created_at),
    } | usage_kind
