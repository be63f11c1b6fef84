"""What does `GET /credits` answer?"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from feeds.balance import read_balance_at, render_earlier_balance
from feeds.endpoint.errors import InvalidTime
from feeds.endpoint.query import Values, read_time
from feeds.endpoint.services import Services
from feeds.endpoint.statement import Statement
from feeds.read_through import read_current_balance


def read(services: Services, org_id: str, values: Values) -> Callable[[], Awaitable[bytes]]:
    """Return what reads the body. Raises `InvalidTime`."""
    at = read_time(values, "at")
    if at is None:
        return partial(read_current_balance, services.feeds, org_id)
    if at > datetime.now(UTC):
        raise InvalidTime(fields={"at": "a moment that has passed"})
    return partial(read_earlier_body, services, org_id, at)


async def read_earlier_body(services: Services, org_id: str, at: datetime) -> bytes:
    """Return the balance as it was at an earlier moment."""
    return render_earlier_balance(await read_balance_at(services.feeds.store.postgres, org_id, at))


BALANCE = Statement("balance", ("at",), read)
