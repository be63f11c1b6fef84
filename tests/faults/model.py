"""What must a ledger be, given the events of one organisation in their order?

A plain model, written from the contract and not from `worker.posting`: it replays the events against the lines
that the ledger holds. A line's `created_at` is the clock that its batch saw; all else is computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

Event = Mapping[str, Any]
LONG_AGO, FAR_AHEAD = "0000", "9999"


class Line(NamedTuple):
    """A movement: which grants (by number of arrival) gave how much is in `draws`."""

    kind: str
    credits: int
    usage_kind: str | None
    ref: str
    draws: tuple[tuple[int, int], ...] = ()


@dataclass
class Grant:
    """A grant. `allotted` is the position of its allot line, 0 while it is pending."""

    number: int
    event: Event
    remaining: int = 0
    allotted: int = 0
    open: bool = True

    @property
    def starts(self) -> str:
        return self.event.get("effective_at") or LONG_AGO

    @property
    def ends(self) -> str:
        return self.event.get("expires_at") or FAR_AHEAD


@dataclass
class Account:
    """One organisation's credits. Times are RFC 3339 strings of one form, so that they compare as text."""

    lines: list[Line] = field(default_factory=list)
    grants: dict[str, Grant] = field(default_factory=dict)
    current: list[Grant] = field(default_factory=list)
    usages: dict[str, tuple[str, int]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    added_grants: list[str] = field(default_factory=list)
    added_usages: list[str] = field(default_factory=list)

    def settle(self, now: str) -> None:
        """Starts and ends that have come, by instant; allot before expire; then by arrival."""
        instants = []
        self.current = [grant for grant in self.current if grant.open]
        for grant in self.current:
            if not grant.allotted and grant.starts <= now:
                instants.append((grant.starts, 0, grant.number, grant))
            if grant.ends <= now and (grant.allotted or grant.starts <= now):
                instants.append((grant.ends, 1, grant.number, grant))
        for _, ends, _, grant in sorted(instants, key=lambda instant: instant[:3]):
            if ends:
                self.close(grant, "expire")
            else:
                self.allot(grant)

    def mark(self) -> tuple[Any, ...]:
        """Return all that is needed to undo what follows."""
        states = [(grant, grant.remaining, grant.allotted, grant.open) for grant in self.current]
        return len(self.lines), len(self.refused), states, len(self.added_grants), len(self.added_usages)

    def undo(self, mark: tuple[Any, ...]) -> None:
        lines, refused, states, grants, usages = mark
        del self.lines[lines:], self.refused[refused:]
        for known, added, number in (
            (self.grants, self.added_grants, grants),
            (self.usages, self.added_usages, usages),
        ):
            for ref in added[number:]:
                del known[ref]
            del added[number:]
        self.current = [grant for grant, *_ in states]
        for grant, remaining, allotted, is_open in states:
            grant.remaining, grant.allotted, grant.open = remaining, allotted, is_open

    def allot(self, grant: Grant) -> None:
        grant.remaining = grant.event["credits"]
        self.lines.append(Line("allot", grant.remaining, None, grant.event["grant_ref"]))
        grant.allotted = len(self.lines)

    def close(self, grant: Grant, kind: str) -> None:
        if grant.open and grant.remaining:
            self.lines.append(Line(kind, -grant.remaining, None, grant.event["grant_ref"]))
        grant.open, grant.remaining = False, 0

    def post(self, event: Event, now: str) -> None:
        """Post one event; what it refuses is written down by code."""
        match event["type"]:
            case "usage":
                self.use(event)
            case "grant":
                self.give(event, now)
            case "revoke":
                if grant := self.grants.get(event["grant_ref"]):
                    self.close(grant, "revoke")
                else:
                    self.refused.append("unknown_grant")

    def give(self, event: Event, now: str) -> None:
        if known := self.grants.get(event["grant_ref"]):
            if known.event != event:
                self.refused.append("conflict")
            return
        grant = self.grants[event["grant_ref"]] = Grant(len(self.grants) + 1, event)
        self.current.append(grant)
        self.added_grants.append(event["grant_ref"])
        if grant.starts <= now:
            self.allot(grant)

    def use(self, event: Event) -> None:
        content = event["usage_kind"], event["credits"]
        if not event["credits"]:
            return
        if known := self.usages.get(event["usage_ref"]):
            if known != content:
                self.refused.append("conflict")
            return
        if event.get("far_ahead"):
            self.refused.append("occurred_in_future")
            return
        self.usages[event["usage_ref"]] = content
        self.added_usages.append(event["usage_ref"])
        left, draws = event["credits"], []
        for grant in sorted(self.current, key=self.draw_order):
            if left and grant.open and grant.allotted and grant.starts <= event["occurred_at"] < grant.ends:
                taken = min(left, grant.remaining)
                grant.remaining -= taken
                grant.open = grant.remaining > 0
                draws.append((grant.number, taken))
                left -= taken
        if draws:
            self.lines.append(Line("consume", left - event["credits"], content[0], event["usage_ref"], tuple(draws)))
        if left:
            self.lines.append(Line("overflow", -left, content[0], event["usage_ref"]))

    @staticmethod
    def draw_order(grant: Grant) -> tuple[int, str, str, int]:
        return grant.event.get("priority", 50), grant.ends, grant.starts, grant.allotted


def show_clock(instant: datetime) -> str:
    """Return a time as the model compares it: UTC, always with microseconds."""
    return instant.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def replay(events: Sequence[Event], ledger: Sequence[tuple[str, Line]]) -> tuple[list[str], Account]:
    """Compare a ledger (clock and line, by position) with what the events must come to.

    Returns the differences, at most one: after the first nothing can be said.
    """
    account, place, before = Account(), 0, LONG_AGO
    for now, lines in groupby(ledger, key=lambda pair: pair[0]):
        wanted = [line for _, line in lines]
        start, found = len(account.lines), []
        for early in silent(account, events, place, before):
            mark = account.mark()
            end = post_group(account, events, (place, place + early), (before, now), len(wanted))
            found = account.lines[start:]
            if found == wanted:
                break
            account.undo(mark)
        else:
            near = next((n for n, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), 0)
            words = (
                f"from position {start + near + 1} at {now}: {found[near : near + 3]}, not {wanted[near : near + 3]}"
            )
            return [words], account
        place, before = end, now
    return finish(account, events[place:]), account


def silent(account: Account, events: Sequence[Event], place: int, before: str) -> list[int]:
    """Return how many of the next events may have been posted by batches of which no line tells, the most first.

    It matters for a grant that is yet to start: posted earlier it waits for its instant, posted now it is allotted in turn.
    """
    mark, lines, choices = account.mark(), len(account.lines), [0]
    for number in range(place, len(events)):
        account.post(events[number], before)
        if len(account.lines) > lines:
            break
        if events[number]["type"] == "grant":
            choices.append(number + 1 - place)
    account.undo(mark)
    return choices[::-1]


def post_group(
    account: Account, events: Sequence[Event], places: tuple[int, int], clocks: tuple[str, str], wanted: int
) -> int:
    """Post events, the first by the earlier clock, until they have come to that many lines; return the place after."""
    (place, late), (before, now) = places, clocks
    for number in range(place, late):
        account.post(events[number], before)
    start, place = len(account.lines), late
    account.settle(now)
    while len(account.lines) - start < wanted and place < len(events):
        account.post(events[place], now)
        place += 1
        if len(account.lines) - start < wanted:
            account.settle(now)
    return place


def finish(account: Account, events: Sequence[Event]) -> list[str]:
    """Post what is left: it must come to nothing, or the ledger lacks it."""
    lines = len(account.lines)
    for event in events:
        account.post(event, LONG_AGO)
        if len(account.lines) > lines:
            return [f"nothing in the ledger of {event}"]
    return []
