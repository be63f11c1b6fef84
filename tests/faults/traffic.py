"""Which events are sent? As a seed says; with all that a careless producer does.

Usages, grants with starts and ends, revokes, repeats, conflicts, events from the future, garbage.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.faults.model import show_clock

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

Event = dict[str, Any]


class Traffic:
    """An endless, seeded stream of events; what was sent of each organisation is kept in order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.number = 0
        self.sent: dict[str, list[Event]] = defaultdict(list)
        self.grants: dict[str, list[str]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def batch(self, size: int) -> list[tuple[str, bytes]]:
        """Return events as organisation and bytes; kept as sent, so they must be sent, in this order."""
        return [self.one() for _ in range(size)]

    def one(self) -> tuple[str, bytes]:
        org_id = self.rng.choice(STREAM_ORGANISATIONS)
        self.number += 1
        sort = self.rng.choices(SORTS, WEIGHTS)[0]
        self.counts[sort] += 1
        if sort == "garbage":
            return org_id, self.rng.choice(GARBAGE)[:] + b" " * self.rng.randrange(9)
        event = getattr(self, sort)(org_id)
        self.sent[org_id].append(event)
        return org_id, json.dumps({name: value for name, value in event.items() if name != "far_ahead"}).encode()

    def ago(self, seconds: float) -> str:
        return show_clock(datetime.now(UTC) - timedelta(seconds=seconds))

    def usage(self, org_id: str) -> Event:
        return {
            "type": "usage",
            "org_id": org_id,
            "usage_ref": f"u{self.number}",
            "usage_kind": self.rng.choice(USAGE_KINDS),
            "credits": self.rng.randrange(1, 20),
            "occurred_at": self.ago(self.rng.choice((0, 0, 1, 30)) * self.rng.random()),
        }

    def zero(self, org_id: str) -> Event:
        return self.usage(org_id) | {"credits": 0}

    def future(self, org_id: str) -> Event:
        return self.usage(org_id) | {"occurred_at": self.ago(-3600), "far_ahead": True}

    def grant(self, org_id: str) -> Event:
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
        if starts in {None, 3600}:  # for one about to start it is the clock that says whether a revoke shows
            self.grants[org_id].append(event["grant_ref"])
        return event

    def revoke(self, org_id: str) -> Event:
        known = self.grants[org_id]
        ref = known.pop(self.rng.randrange(len(known))) if known else f"g{self.number}"
        return {"type": "revoke", "org_id": org_id, "grant_ref": ref}

    def unknown(self, org_id: str) -> Event:
        return {"type": "revoke", "org_id": org_id, "grant_ref": f"never{self.number}"}

    def earlier(self, org_id: str) -> Event:
        """Return one of the latest usages and grants that were no trouble, else a new usage."""
        fair = [one for one in self.sent[org_id][-RECENT:] if one.get("credits") and "far_ahead" not in one]
        return dict(self.rng.choice(fair)) if fair else self.usage(org_id)

    def repeat(self, org_id: str) -> Event:
        event = self.earlier(org_id)
        return event | {"occurred_at": self.ago(0)} if event["type"] == "usage" else event

    def conflict(self, org_id: str) -> Event:
        event = self.earlier(org_id)
        return event | {"credits": event["credits"] + 1}


SORTS = ("usage", "grant", "revoke", "repeat", "conflict", "unknown", "future", "zero", "garbage")
WEIGHTS = (84, 5, 2, 4, 1, 0.5, 0.5, 1, 2)


def celery_lists(seed: int) -> Iterator[list[Event]]:
    """Yield lists for `events.post`: their organisations are their own, as no order holds among messages."""
    rng = random.Random(seed)
    number = 0
    while True:
        events: list[Event] = []
        for _ in range(rng.randrange(1, 8)):
            number += 1
            org_id, kind = rng.choice(CELERY_ORGANISATIONS), rng.choice(USAGE_KINDS)
            one = {
                "type": "usage",
                "org_id": org_id,
                "usage_ref": f"c{number}",
                "usage_kind": kind,
                "credits": rng.randrange(1, 9),
            }
            events += [one] * rng.choice((1, 1, 1, 2))
        yield events
