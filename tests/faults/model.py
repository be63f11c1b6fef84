"""Which movements must a ledger hold, given the events of one organisation in their order?

This is a plain model. It is written from the rules (worker/README.md) and does not use `worker.ledger.posting`. It replays
the events against the movements that the ledger holds. The `created_at` of a movement is the clock that its batch saw; the
model computes everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

Event = Mapping[str, Any]
LONG_AGO, FAR_AHEAD = "0000", "9999"


class Movement(NamedTuple):
    """A movement. `draws` holds pairs: the number of a grant, by arrival, and the credits that it gave."""

    kind: str
    credits: int
    usage_kind: str | None
    ref: str
    draws: tuple[tuple[int, int], ...] = ()


@dataclass
class Grant:
    """A grant. `allotted` is the position of its allot movement, 0 while the grant is pending."""

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
    """One organisation's credits. All times are RFC 3339 strings of one form, so they are compared as text."""

    movements: list[Movement] = field(default_factory=list)
    grants: dict[str, Grant] = field(default_factory=dict)
    current: list[Grant] = field(default_factory=list)
    usages: dict[str, tuple[str, int]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    added_grants: list[str] = field(default_factory=list)
    added_usages: list[str] = field(default_factory=list)

    def settle(self, now: str) -> None:
        """Post the starts and ends that are due: by instant, then allot before expire, then by arrival."""
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

    def save(self) -> tuple[Any, ...]:
        """Return what `restore` needs to undo the changes that follow."""
        states = [(grant, grant.remaining, grant.allotted, grant.open) for grant in self.current]
        return len(self.movements), len(self.refused), states, len(self.added_grants), len(self.added_usages)

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo all changes since `save`."""
        movements, refused, states, grants, usages = saved
        del self.movements[movements:], self.refused[refused:]
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
        self.movements.append(Movement("allot", grant.remaining, None, grant.event["grant_ref"]))
        grant.allotted = len(self.movements)

    def close(self, grant: Grant, kind: str) -> None:
        if grant.open and grant.remaining:
            self.movements.append(Movement(kind, -grant.remaining, None, grant.event["grant_ref"]))
        grant.open, grant.remaining = False, 0

    def post(self, event: Event, now: str) -> None:
        """Post one event, or append the code of its refusal to `refused`."""
        match event["type"]:
            case "usage":
                self.post_usage(event)
            case "grant":
                self.post_grant(event, now)
            case "revoke":
                if grant := self.grants.get(event["grant_ref"]):
                    self.close(grant, "revoke")
                else:
                    self.refused.append("unknown_grant")

    def post_grant(self, event: Event, now: str) -> None:
        if known := self.grants.get(event["grant_ref"]):
            if known.event != event:
                self.refused.append("conflict")
            return
        grant = self.grants[event["grant_ref"]] = Grant(len(self.grants) + 1, event)
        self.current.append(grant)
        self.added_grants.append(event["grant_ref"])
        if grant.starts <= now:
            self.allot(grant)

    def post_usage(self, event: Event) -> None:
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
            consume = Movement("consume", left - event["credits"], content[0], event["usage_ref"], tuple(draws))
            self.movements.append(consume)
        if left:
            self.movements.append(Movement("overflow", -left, content[0], event["usage_ref"]))

    @staticmethod
    def draw_order(grant: Grant) -> tuple[int, str, str, int]:
        return grant.event.get("priority", 50), grant.ends, grant.starts, grant.allotted


def format_clock(instant: datetime) -> str:
    """Return a time as the model compares it: UTC, always with microseconds."""
    return instant.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def replay(events: Sequence[Event], ledger: Sequence[tuple[str, Movement]]) -> tuple[list[str], Account]:
    """Compare a ledger with the movements that its events must produce.

    Args:
        events: The organisation's events in their order.
        ledger: Clock and movement, by position.

    Returns the differences, at most one, because nothing can be said about what follows it; and the model's account.
    """
    account, index, previous = Account(), 0, LONG_AGO
    for now, group in groupby(ledger, key=lambda pair: pair[0]):
        wanted = [movement for _, movement in group]
        start, found = len(account.movements), []
        for silent in silent_counts(account, events, index, previous):
            saved = account.save()
            end = post_group(account, events, (index, index + silent), (previous, now), len(wanted))
            found = account.movements[start:]
            if found == wanted:
                break
            account.restore(saved)
        else:
            first = next((n for n, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), 0)
            difference = f"from position {start + first + 1} at {now}: {found[first : first + 3]}, not {wanted[first : first + 3]}"
            return [difference], account
        index, previous = end, now
    return check_rest(account, events[index:]), account


def silent_counts(account: Account, events: Sequence[Event], index: int, previous: str) -> list[int]:
    """Return how many of the next events an earlier batch may have posted without a movement; the highest first.

    This matters for a grant that starts later. If it was posted earlier, it is allotted at the instant of its start. If it
    is posted now, it is allotted when its turn comes.
    """
    saved, movements, counts = account.save(), len(account.movements), [0]
    for number in range(index, len(events)):
        account.post(events[number], previous)
        if len(account.movements) > movements:
            break
        if events[number]["type"] == "grant":
            counts.append(number + 1 - index)
    account.restore(saved)
    return counts[::-1]


def post_group(
    account: Account, events: Sequence[Event], places: tuple[int, int], clocks: tuple[str, str], wanted: int
) -> int:
    """Post events until they have produced enough movements; return the index of the next event.

    Args:
        account: Changed in place.
        events: All events of the organisation.
        places: The index of the first event, and the index of the first that is posted by the later clock.
        clocks: The earlier and the later clock.
        wanted: The number of movements that the batch of the later clock wrote.
    """
    (index, late), (previous, now) = places, clocks
    for number in range(index, late):
        account.post(events[number], previous)
    start, index = len(account.movements), late
    account.settle(now)
    while len(account.movements) - start < wanted and index < len(events):
        account.post(events[index], now)
        index += 1
        if len(account.movements) - start < wanted:
            account.settle(now)
    return index


def check_rest(account: Account, events: Sequence[Event]) -> list[str]:
    """Post the remaining events. If one of them produces a movement, the ledger lacks it."""
    movements = len(account.movements)
    for event in events:
        account.post(event, LONG_AGO)
        if len(account.movements) > movements:
            return [f"nothing in the ledger of {event}"]
    return []
