"""What does `GET /credits` answer?"""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from feeds.balance import Balance, read_balance, read_balance_at
from feeds.endpoint.errors import InvalidTime
from feeds.endpoint.query import Values, read_time
from feeds.endpoint.statement import Statement
from feeds.endpoint.usage import Services
from feeds.movement import format_time


def read(services: Services, org_id: str, values: Values) -> Callable[[], Awaitable[bytes]]:
    """Return what makes the body. Raises `InvalidTime`."""
    at = read_time(values, "at")
    if at is None:
        return partial(make_body, services, org_id)
    if at > datetime.now(UTC):
        raise InvalidTime(fields={"at": "a moment that has passed"})
    return partial(make_earlier_body, services, org_id, at)


async def make_body(services: Services, org_id: str) -> bytes:
    """Return the balance as it is now."""
    return render(await read_balance(services.feeds.store.postgres, org_id))


def render(balance: Balance) -> bytes:
    """Return a balance as JSON."""
    expiry = balance.next_expiry
    return write_json(
        available_credits=balance.available,
        by_source={"plan": balance.plan, "promotion": balance.promotion},
        pending_credits=balance.pending,
        overflow_credits=balance.overflow,
        next_expiry=expiry and {"credits": expiry.credits, "expires_at": format_time(expiry.expires_at)},
        position=balance.position,
    )


async def make_earlier_body(services: Services, org_id: str, at: datetime) -> bytes:
    """Return the balance as it was at an earlier moment."""
    found = await read_balance_at(services.feeds.store.postgres, org_id, at)
    return write_json(available_credits=found.available, overflow_credits=found.overflow, position=found.position)


def write_json(**members: object) -> bytes:
    """Return the JSON of a balance."""
    return json.dumps({"object": "credit_balance", **members}, separators=(",", ":")).encode()


BALANCE = Statement("balance", ("at",), read)
