"""Which grants does an organisation have, according to the ledger in Postgres?"""

import json
from datetime import datetime
from typing import Any, NamedTuple

from feeds.cursor import NO_CEILING, Cursor, Direction
from feeds.movement import format_time
from feeds.page import place_page
from feeds.postgres import Postgres, PostgresAway
from feeds.queries import load_queries

SQL = load_queries(__file__)


class GrantRequest(NamedTuple):
    """Which grants are requested: a numbered page, or the page at a cursor. A cursor's ordinal is a grant's number."""

    only_open: bool
    limit: int
    page: int = 1
    cursor: Cursor | None = None


class Grants(NamedTuple):
    """A page of grants at one moment, newest first.

    `total` is how many there are in all, `newer` how many come before the page. `first` and `last` are the numbers of
    the newest and the oldest grant of the page; None if it is empty.
    """

    total: int
    newer: int
    first: int | None
    last: int | None
    items: list[bytes]


async def read_grants(postgres: Postgres, org_id: str, request: GrantRequest) -> Grants:
    """Return the grants that are requested. Raises `PostgresAway`."""
    query = SQL["read_open_grants" if request.only_open else "read_grants"]
    rows = await postgres.fetch(query, {"org_id": org_id, **place(request)}, org_id=org_id)
    if not rows:
        raise PostgresAway("the ledger's row is missing")
    total, newer, first = rows[0][:3]
    if first is None:
        is_newest = request.cursor is not None and request.cursor.direction is Direction.PREV
        return Grants(total, 0 if is_newest else total, None, None, [])
    return Grants(total, newer, first, rows[-1][2], [render_grant(*row[3:]) for row in rows])


def place(request: GrantRequest) -> dict[str, Any]:
    """Return the parameters of a query that say where the page is."""
    cursor, limit = request.cursor, request.limit
    if cursor is None:
        skip = place_page(request.page, limit).skip
        return {"skip": skip, "ceiling": NO_CEILING, "floor": 0, "limit": limit, "upwards": False}
    if cursor.direction is Direction.NEXT:
        return {"skip": 0, "ceiling": cursor.ordinal, "floor": 0, "limit": limit, "upwards": False}
    # Without gaps the next `limit` numbers are the page; with gaps, the query counts.
    ceiling = cursor.ceiling if request.only_open else min(cursor.ordinal + limit, cursor.ceiling)
    return {"skip": 0, "ceiling": ceiling, "floor": cursor.ordinal, "limit": limit, "upwards": True}


def render_grant(*row: Any) -> bytes:
    """Return a grant as the JSON of a `credit_grant`, given its columns of a query from `grant_ref` on."""
    (
        grant_ref, source, priority, credits_given, drawn, expired, revoked, remaining, is_open, allot_position,
        effective_at, expires_at, labels, now,
    ) = row  # fmt: skip
    if allot_position is None:  # no movement yet, or never one
        remaining, revoked = (credits_given, 0) if is_open else (0, credits_given)
    state = find_state(is_open, revoked, expired, effective_at, expires_at, now)
    document = {
        "object": "credit_grant",
        "grant_ref": grant_ref,
        "source": source,
        "priority": priority,
        "credits": credits_given,
        "drawn": drawn,
        "expired": expired,
        "revoked": revoked,
        "remaining": remaining,
        "state": state,
        "effective_at": effective_at and format_time(effective_at),
        "expires_at": expires_at and format_time(expires_at),
    }
    if labels is not None:
        document["labels"] = json.loads(labels)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def find_state(  # noqa: PLR0913, PLR0917 -- what a state depends on
    is_open: bool,  # noqa: FBT001
    revoked: int,
    expired: int,
    effective_at: datetime | None,
    expires_at: datetime | None,
    now: datetime,
) -> str:
    """Return a grant's state at a moment."""
    if not is_open:
        return "revoked" if revoked else "expired" if expired else "spent"
    if expires_at is not None and expires_at <= now:
        return "expired"
    return "pending" if effective_at is not None and effective_at > now else "active"
