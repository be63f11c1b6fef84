"""How many credits does an organisation have, now or at an earlier moment, according to the ledger in Postgres?"""

import json
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from feeds.movement import format_time
from feeds.postgres import Postgres, PostgresAway
from feeds.queries import load_queries

SQL = load_queries(__file__)


class Expiry(NamedTuple):
    """How many of the available credits end next, and when."""

    credits: int
    expires_at: datetime


class Balance(NamedTuple):
    """What an organisation has now.

    `plan` and `promotion` can be drawn now; together they are what is available. `pending` comes from grants that start
    later; `overflow` is all overflow ever, a positive number. `position` is that of the last movement. `revision`
    increases with every change of a grant or a movement. `true_for_s` is for how many seconds all of this stays true
    if nothing is posted, None for ever.
    """

    epoch: UUID
    revision: int
    position: int
    overflow: int
    plan: int
    promotion: int
    pending: int
    next_expiry: Expiry | None
    true_for_s: float | None

    @property
    def available(self) -> int:
        """Return the credits that can be drawn now."""
        return self.plan + self.promotion


class EarlierBalance(NamedTuple):
    """What an organisation had at an earlier moment, after its last movement up to then."""

    position: int
    available: int
    overflow: int


async def read_balance(postgres: Postgres, org_id: str) -> Balance:
    """Return what an organisation has now; zeros for one without movements and grants. Raises `PostgresAway`."""
    rows = await postgres.fetch(SQL["read_balance"], {"org_id": org_id}, org_id=org_id)
    if not rows:
        raise PostgresAway("the ledger's row is missing")
    epoch, revision, position, overflow, plan, promotion, pending, expires_at, expiring, true_for_s = rows[0]
    next_expiry = None if expires_at is None else Expiry(expiring, expires_at)
    return Balance(epoch, revision, position, overflow, plan, promotion, pending, next_expiry, true_for_s)


async def read_balance_at(postgres: Postgres, org_id: str, at: datetime) -> EarlierBalance:
    """Return what an organisation had at an earlier moment. Raises `PostgresAway`."""
    [row] = await postgres.fetch(SQL["read_balance_at"], {"org_id": org_id, "at": at}, org_id=org_id)
    return EarlierBalance(*row)


def render_balance(balance: Balance) -> bytes:
    """Return a balance as the JSON of a `credit_balance`."""
    expiry = balance.next_expiry
    return write_balance(
        available_credits=balance.available,
        by_source={"plan": balance.plan, "promotion": balance.promotion},
        pending_credits=balance.pending,
        overflow_credits=balance.overflow,
        next_expiry=expiry and {"credits": expiry.credits, "expires_at": format_time(expiry.expires_at)},
        position=balance.position,
    )


def render_earlier_balance(balance: EarlierBalance) -> bytes:
    """Return an earlier balance as the JSON of a `credit_balance`, which lacks what movements do not tell."""
    return write_balance(
        available_credits=balance.available, overflow_credits=balance.overflow, position=balance.position
    )


def write_balance(**members: object) -> bytes:
    """Return JSON."""
    return json.dumps({"object": "credit_balance", **members}, separators=(",", ":")).encode()
