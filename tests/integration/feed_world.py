"""A ledger by the pure rules alone, and the pages that it must give."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from feeds.movement import Kind, format_time
from tests.histories import organisation, terms
from worker.events import EventRefused, check_event
from worker.ledger.posting import post

FILTERS = [(kind, usage_kind) for kind in (None, *Kind) for usage_kind in (None, "ai_usage", "tm_usage")]


class Published(NamedTuple):
    """A page that was read: the ordinals `below` (excluded) to `newest`, and where its cursors lead."""

    org: int
    feed: tuple
    limit: int
    newest: int
    below: int
    pages: dict


@dataclass
class Waiting:
    """An event in its stream. One that was buried is passed over when it is read again."""

    event: object
    buried: bool = False


@dataclass
class Ledger:
    """An organisation's ledger. `moments` are the positions that a page may show: after the last batch that was
    shown, and after each one committed since."""

    org_id: str
    state: object = None
    waiting: list = field(default_factory=list)
    moments: list = field(default_factory=lambda: [0])
    served: dict = field(default_factory=dict)
    ids: dict = field(default_factory=dict)

    def __post_init__(self):
        self.state = organisation(self.org_id)

    def add(self, event):
        self.waiting.append(Waiting(check_event(event)))

    def post(self, now, *, shown):
        """Post what waits; where that is not shown it waits on, and is posted again."""
        for entry in self.waiting:
            if entry.buried:
                continue
            try:
                post(entry.event, self.state, terms(now), datetime.now(UTC))
            except EventRefused:
                entry.buried = True
        position = len(self.state.movements)
        if shown:
            self.waiting.clear()
            self.moments = [position]
        else:
            self.moments.append(position)

    def lines(self, feed, position=None):
        """Return a feed's movements, oldest first."""
        kind, usage_kind = feed
        return [
            movement
            for movement in self.state.movements[:position]
            if kind in {None, movement.kind} and usage_kind in {None, movement.usage_kind}
        ]

    def check(self, listing, shown, direction="next"):
        """Assert that a listing is the page `shown` of one of the moments, and none from before one already served."""
        pages, lines, feed = listing["pages"], self.lines(shown.feed), shown.feed
        total = pages["total_items"]
        allowed = {len(self.lines(feed, position)) for position in self.moments}
        assert total in allowed, (total, allowed)
        assert total >= self.served.get(feed, 0)
        self.served[feed] = total
        assert [self.look(item) for item in listing["items"]] == [
            show(movement) for movement in reversed(lines[shown.below : shown.newest])
        ]
        number = (total - shown.newest) // shown.limit + 1 if shown.newest else -(-total // shown.limit) + 1
        assert pages["page"] == (pages["page"] if direction is None else number)
        assert (pages["limit"], pages["total_pages"]) == (shown.limit, -(-total // shown.limit))
        assert (pages["has_next"], pages["has_prev"]) == (shown.below > 0, shown.newest < total)
        assert (pages["next_cursor"] is not None, pages["prev_cursor"] is not None) == (
            shown.below > 0,
            shown.newest < total,
        )
        assert pages["direction"] == (direction or "next")

    def look(self, item):
        """Return what an item says, once its id is the one that its line has had before."""
        item = dict(item)
        ref = (item["usage_ref"], item["kind"])
        assert self.ids.setdefault(ref, item["id"]) == item["id"]
        assert (item.pop("object"), item.pop("id")[:5]) == ("credit_entry", "cent_")
        return item


def show(movement):
    usage_kind = {"usage_kind": movement.usage_kind} if movement.usage_kind else {}
    return {
        "kind": movement.kind.value,
        "credits": movement.credits,
        "usage_ref": movement.usage_ref,
        "created_at": format_time(movement.created_at),
    } | usage_kind
