"""Which sample traffic causes every kind of movement? `up --demo` runs it as a process of its own.

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

RECENT_MAX = 50
"""How many recent usages and promotions can be repeated or revoked."""
DRAWN_FIRST, DRAWN_LAST = 10, 90
"""Priorities before and after the plan's, which is the default. What is drawn last has credits left when it expires."""
RETRY_AFTER_S = 2.0


class Customer(NamedTuple):
    """One organisation of the demo, and how often it does what. Weights are relative."""

    org_id: str
    plan_credits: int
    ai_burst_weight: int
    trademark_weight: int


STUDIO = Customer("org_studio", 2_000, 6, 2)
"""The `curl` line that `up --demo` prints reads the feed of this customer."""
CUSTOMERS = (STUDIO, Customer("org_lawfirm", 5_000, 1, 6), Customer("org_startup", 500, 5, 1))


class Traffic:
    """Endless plausible events.

    All refs are new, except the plan's: its ref names the month, so a restart does not grant the month's plan twice.
    """

    def __init__(self, seed: int | None = None) -> None:
        """Take a seed, with which tests make the random choices repeatable."""
        self.random = random.Random(seed)
        self.usages: deque[Event] = deque(maxlen=RECENT_MAX)
        self.promotions: deque[Event] = deque(maxlen=RECENT_MAX)

    def history(self, now: datetime) -> list[Event]:
        """Return the first events: they fill several pages and cause every kind of movement within 15 seconds."""
        events = [self.trademark(STUDIO)]  # overflows, because its plan comes later
        for customer in CUSTOMERS:
            events += [self.plan(customer, now), self.promotion(customer, now, lasts_s=12, priority=DRAWN_LAST)]
            events += [self.promotion(customer, now, lasts_s=lasts_s) for lasts_s in (25, 40)]
            for _ in range(10):
                events += [*self.ai_burst(customer), self.trademark(customer)]
        mistaken = self.promotion(STUDIO, now, lasts_s=600)
        conflict = {**self.usages[0], "credits": self.usages[0]["credits"] + 1}
        return [*events, mistaken, self.revoke(mistaken), self.usages[-1], conflict]

    def batches(self) -> Iterator[tuple[list[Event], float]]:
        """Yield events, and how many seconds to wait after them: about 8 events a second."""
        while True:
            events = self.next_events(datetime.now(UTC))
            yield events, len(events) / 8 * self.random.uniform(0.5, 1.5)

    def next_events(self, now: datetime) -> list[Event]:
        """Return the events of one random action of one random customer."""
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
        """Return the month's grant. It is the same for the whole month."""
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
        """Return a small grant that expires soon.

        Args:
            customer: Who gets it.
            now: The current time.
            lasts_s: Seconds from its start to its end.
            priority: Of the grant; lower is drawn first.
            starts_in_s: Seconds from now to its start; with 0 it has no start.
        """
        start = now + timedelta(seconds=starts_in_s)
        grant = {
            "type": "grant",
            "org_id": customer.org_id,
            "grant_ref": str(TypeID("grant")),
            "credits": self.random.randint(2, 30) * 10,
            "source": "promotion",
            "priority": priority,
            "expires_at": start + timedelta(seconds=lasts_s),
        }
        if starts_in_s:
            grant["effective_at"] = start
        self.promotions.append(grant)
        return grant

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
        """Return the revoke of a grant."""
        fields = {"grant_ref": grant["grant_ref"], "reason": "sample of a promotion that was given in error"}
        return {"type": "revoke", "org_id": grant["org_id"], **fields}


def main() -> None:
    """Send the traffic until the process is stopped. Events that Redis does not accept are dropped."""
    settings, traffic = worker_settings(), Traffic()
    with Producer(
        settings.redis_url, settings.celery_broker_url, settings.event_shards, settings.usage_kinds
    ) as producer:
        history = traffic.history(datetime.now(UTC))
        producer.send(history)
        print(f"sent a history of {len(history)} events; sending about 8 a second from now on", flush=True)  # noqa: T201
        for events, rest_s in traffic.batches():
            try:
                producer.send(events)
            except redis.RedisError as error:
                print(f"not sent: {error}", flush=True)  # noqa: T201
                time.sleep(RETRY_AFTER_S)
            time.sleep(rest_s)


if __name__ == "__main__":
    main()
