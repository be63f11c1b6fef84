"""Which sample traffic shows every kind of movement? Run as a process of its own by `up --demo`.

Three customers: a busy studio, a law firm with steady work, and a start-up that outgrows its plan.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import redis
from typeid import TypeID

from worker.producer import Producer
from worker.settings import worker_settings

Event = dict[str, Any]

REMEMBERED = 50
DRAWN_FIRST, DRAWN_LAST = 10, 90
"""Before the plan, whose priority is the default; and after it, so that something is left to lapse."""
RETRY_AFTER_S = 2.0


class Customer(NamedTuple):
    """One organisation of the demo, and how it behaves. Weights are relative."""

    org_id: str
    plan_credits: int
    ai_burst_weight: int
    trademark_weight: int


SHOWN = Customer("org_studio", 2_000, 6, 2)
"""The one whose feed the ready `curl` line shows."""
CUSTOMERS = (SHOWN, Customer("org_lawfirm", 5_000, 1, 6), Customer("org_startup", 500, 5, 1))


class Traffic:
    """Endless plausible events. Refs are unique, but for the plan's: one grant a month, however often we start."""

    def __init__(self, seed: int | None = None) -> None:
        """Take a seed for tests."""
        self.random = random.Random(seed)
        self.usages: deque[Event] = deque(maxlen=REMEMBERED)
        self.promotions: deque[Event] = deque(maxlen=REMEMBERED)

    def history(self, now: datetime) -> list[Event]:
        """Return what comes first: several pages, and every kind of movement within a quarter of a minute."""
        events = [self.trademark(SHOWN)]  # before its plan, so this overflows
        for customer in CUSTOMERS:
            events += [self.plan(customer, now), self.promotion(customer, now, lasts_s=12, priority=DRAWN_LAST)]
            events += [self.promotion(customer, now, lasts_s=lasts_s) for lasts_s in (25, 40)]
            for _ in range(10):
                events += [*self.ai_burst(customer), self.trademark(customer)]
        lost = self.promotion(SHOWN, now, lasts_s=600)
        conflict = {**self.usages[0], "credits": self.usages[0]["credits"] + 1}
        return [*events, lost, self.revoke(lost), self.usages[-1], conflict]

    def batches(self) -> Iterator[tuple[list[Event], float]]:
        """Yield what comes next, and for how many seconds to rest after it: about 8 events a second."""
        while True:
            events = self.next_events(datetime.now(UTC))
            yield events, len(events) / 8 * self.random.uniform(0.5, 1.5)

    def next_events(self, now: datetime) -> list[Event]:
        """Return one thing that happens."""
        customer = self.random.choice(CUSTOMERS)
        kinds = ("ai", "trademark", "promotion", "later", "revoke", "repeat")
        weights = (customer.ai_burst_weight * 2, customer.trademark_weight * 4, 2, 1, 1, 1)
        match self.random.choices(kinds, weights)[0]:
            case "ai":
                return self.ai_burst(customer)
            case "trademark":
                return [self.trademark(customer)]
            case "promotion":
                priority = self.random.choice((DRAWN_FIRST, DRAWN_LAST))
                return [self.plan(customer, now), self.promotion(customer, now, self.random.randint(10, 45), priority)]
            case "later":
                return [self.promotion(customer, now, lasts_s=60, starts_in_s=self.random.randint(5, 20))]
            case "revoke" if self.promotions:
                return [self.revoke(self.promotions.pop())]
            case _:
                return [self.random.choice(self.usages)] if self.usages else []

    def plan(self, customer: Customer, now: datetime) -> Event:
        """Return the month's grant: always the same within a month."""
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        next_month = (month + timedelta(days=32)).replace(day=1)
        return {
            "type": "grant",
            "org_id": customer.org_id,
            "grant_ref": f"plan_{month:%Y-%m}",
            "credits": customer.plan_credits,
            "source": "plan",
            "effective_at": month,
            "expires_at": next_month,
        }

    def promotion(
        self, customer: Customer, now: datetime, lasts_s: int, priority: int = DRAWN_FIRST, starts_in_s: int = 0
    ) -> Event:
        """Return a small gift that lapses soon."""
        start = now + timedelta(seconds=starts_in_s)
        gift = {
            "type": "grant",
            "org_id": customer.org_id,
            "grant_ref": str(TypeID("grant")),
            "credits": self.random.randint(2, 30) * 10,
            "source": "promotion",
            "priority": priority,
            "expires_at": start + timedelta(seconds=lasts_s),
        }
        if starts_in_s:
            gift["effective_at"] = start
        self.promotions.append(gift)
        return gift

    def ai_burst(self, customer: Customer) -> list[Event]:
        """Return a few AI usages at once."""
        return [self.usage(customer, "ai_usage", self.random.randint(1, 12)) for _ in range(self.random.randint(2, 6))]

    def trademark(self, customer: Customer) -> Event:
        """Return one trademark usage."""
        return self.usage(customer, "tm_usage", self.random.choice((5, 10, 25)))

    def usage(self, customer: Customer, usage_kind: str, credits: int) -> Event:  # noqa: A002 -- the event's own field
        """Return one usage."""
        fields = {"usage_ref": str(TypeID("usage")), "usage_kind": usage_kind, "credits": credits}
        self.usages.append({"type": "usage", "org_id": customer.org_id, **fields})
        return self.usages[-1]

    def revoke(self, grant: Event) -> Event:
        """Return the claw-back of a grant."""
        fields = {"grant_ref": grant["grant_ref"], "reason": "sample of a promotion that was given in error"}
        return {"type": "revoke", "org_id": grant["org_id"], **fields}


def main() -> None:
    """Send the traffic until we are stopped; while the streams are away, try again."""
    settings, traffic = worker_settings(), Traffic()
    with Producer(
        settings.redis_url, settings.celery_broker_url, settings.event_shards, settings.usage_kinds
    ) as producer:
        history = traffic.history(datetime.now(UTC))
        producer.send(history)
        print(f"sent a history of {len(history)} events; from now on about 8 a second", flush=True)  # noqa: T201
        for events, rest_s in traffic.batches():
            try:
                producer.send(events)
            except redis.RedisError as error:
                print(f"not sent: {error}", flush=True)  # noqa: T201
                time.sleep(RETRY_AFTER_S)
            time.sleep(rest_s)


if __name__ == "__main__":
    main()
