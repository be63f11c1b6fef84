"""Which events are sent? The seed decides; the events include all that a careless producer sends.

Usages, grants with starts and ends, revokes, repeats, conflicts, events from the future, garbage.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.faults.model import format_clock

STREAM_ORGANISATIONS = [f"org_s{number}" for number in range(40)]
CELERY_ORGANISATIONS = [f"org_c{number}" for number in range(10)]
USAGE_KINDS = ("ai_usage", "tm_usage")
GARBAGE = (
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b'{"type":"usage"}',
    b'{"type":"grant","org_id":"org_s1","credits":1.5}',
    b"[" * 99,
)
RECENT = 200
"""Repeats and conflicts are made from this many of an organisation's last events."""

Event = dict[str, Any]


class Traffic:
    """An endless, seeded series of events. `sent` holds each organisation's events in the order of sending."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.number = 0
        self.sent: dict[str, list[Event]] = defaultdict(list)
        self.grants: dict[str, list[str]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def batch(self, size: int) -> list[tuple[str, bytes]]:
        """Return events as organisation and bytes. They are recorded as sent: send all of them, in this order."""
        return [self.next_event() for _ in range(size)]

    def next_event(self) -> tuple[str, bytes]:
        org_id = self.rng.choice(STREAM_ORGANISATIONS)
        self.number += 1
        category = self.rng.choices(CATEGORIES, WEIGHTS)[0]
        self.counts[category] += 1
        if category == "garbage":
            return org_id, self.rng.choice(GARBAGE)[:] + b" " * self.rng.randrange(9)
        event = getattr(self, f"make_{category}")(org_id)
        self.sent[org_id].append(event)
        return org_id, json.dumps({name: value for name, value in event.items() if name != "far_ahead"}).encode()

    def ago(self, seconds: float) -> str:
        return format_clock(datetime.now(UTC) - timedelta(seconds=seconds))

    def make_usage(self, org_id: str) -> Event:
        return {
            "type": "usage",
            "org_id": org_id,
            "usage_ref": f"u{self.number}",
            "usage_kind": self.rng.choice(USAGE_KINDS),
            "credits": self.rng.randrange(1, 20),
            "occurred_at": self.ago(self.rng.choice((0, 0, 1, 30)) * self.rng.random()),
        }

    def make_zero(self, org_id: str) -> Event:
        return self.make_usage(org_id) | {"credits": 0}

    def make_future(self, org_id: str) -> Event:
        """Return a usage of an hour ahead. Only the model reads the field `far_ahead`; it is not sent."""
        return self.make_usage(org_id) | {"occurred_at": self.ago(-3600), "far_ahead": True}

    def make_grant(self, org_id: str) -> Event:
        event: Event = {
            "type": "grant",
            "org_id": org_id,
            "grant_ref": f"g{self.number}",
            "credits": self.rng.randrange(20, 400),
            "source": self.rng.choice(("plan", "promotion")),
            "priority": self.rng.choice((0, 10, 50, 50, 100)),
        }
        starts = self.rng.choice((None, None, None, 2, 15, 3600))
        if starts:
            event["effective_at"] = self.ago(-starts)
        if ends := self.rng.choice((None, 3, 30, 300)):
            event["expires_at"] = self.ago(-(starts or 0) - ends)
        if starts in {None, 3600}:  # if a grant starts soon, the clock decides whether its revoke writes a movement
            self.grants[org_id].append(event["grant_ref"])
        return event

    def make_revoke(self, org_id: str) -> Event:
        known = self.grants[org_id]
        ref = known.pop(self.rng.randrange(len(known))) if known else f"g{self.number}"
        return {"type": "revoke", "org_id": org_id, "grant_ref": ref}

    def make_unknown(self, org_id: str) -> Event:
        """Return a revoke of a grant that is never sent."""
        return {"type": "revoke", "org_id": org_id, "grant_ref": f"never{self.number}"}

    def earlier(self, org_id: str) -> Event:
        """Return a recent usage or grant that was valid, or a new usage if there is none."""
        valid = [event for event in self.sent[org_id][-RECENT:] if event.get("credits") and "far_ahead" not in event]
        return dict(self.rng.choice(valid)) if valid else self.make_usage(org_id)

    def make_repeat(self, org_id: str) -> Event:
        event = self.earlier(org_id)
        return event | {"occurred_at": self.ago(0)} if event["type"] == "usage" else event

    def make_conflict(self, org_id: str) -> Event:
        event = self.earlier(org_id)
        return event | {"credits": event["credits"] + 1}


CATEGORIES = ("usage", "grant", "revoke", "repeat", "conflict", "unknown", "future", "zero", "garbage")
WEIGHTS = (84, 5, 2, 4, 1, 0.5, 0.5, 1, 2)


def celery_lists(seed: int) -> Iterator[list[Event]]:
    """Yield lists for `events.post`. Only they use their organisations, because messages have no order."""
    rng = random.Random(seed)
    number = 0
    while True:
        events: list[Event] = []
        for _ in range(rng.randrange(1, 8)):
            number += 1
            org_id, kind = rng.choice(CELERY_ORGANISATIONS), rng.choice(USAGE_KINDS)
            event = {
                "type": "usage",
                "org_id": org_id,
                "usage_ref": f"c{number}",
                "usage_kind": kind,
                "credits": rng.randrange(1, 9),
            }
            events += [event] * rng.choice((1, 1, 1, 2))
        yield events
