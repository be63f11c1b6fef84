"""What does `GET /credits/grants` answer?"""

import json
from collections.abc import Awaitable, Callable
from functools import partial

from feeds.cursor import NO_CEILING, Cursor, Direction, write_cursor
from feeds.endpoint.errors import InvalidFilter
from feeds.endpoint.query import Values, read_paging
from feeds.endpoint.services import Services
from feeds.endpoint.statement import Statement
from feeds.grants import GrantRequest, Grants, read_grants
from feeds.movement import Kind
from feeds.page import Filter, count_pages

EVERY_GRANT, OPEN_GRANTS = Filter(), Filter(Kind.ALLOT)
"""How a cursor says which grants it was made for."""


def read(services: Services, org_id: str, values: Values) -> Callable[[], Awaitable[bytes]]:
    """Return what reads the body. Raises `InvalidFilter` or `InvalidPage`."""
    if values["state"] not in ([], ["open"]):
        raise InvalidFilter("A state filter value is not recognized", fields={"state": "open, once"})
    wanted = OPEN_GRANTS if values["state"] else EVERY_GRANT
    found, limit, page, cursor = read_paging(values, wanted, services.signer, scope_of(org_id))
    return partial(read_body, services, org_id, GrantRequest(found == OPEN_GRANTS, limit, page, cursor))


def scope_of(org_id: str) -> str:
    """Return for what a cursor is signed. No `org_id` holds a blank, so it is no cursor of a feed."""
    return f"{org_id} grants"


async def read_body(services: Services, org_id: str, request: GrantRequest) -> bytes:
    """Return a page of grants as they are now."""
    grants = await read_grants(services.feeds.store.postgres, org_id, request)
    state = OPEN_GRANTS if request.only_open else EVERY_GRANT

    def quote(cursor: Cursor | None) -> str | None:
        return cursor and write_cursor(services.signer, scope_of(org_id), state, cursor)

    pages = json.dumps(describe_pages(request, grants, quote), separators=(",", ":")).encode()
    return b'{"object":"list","items":[%b],"pages":%b}' % (b",".join(grants.items), pages)


def describe_pages(
    request: GrantRequest, grants: Grants, quote: Callable[[Cursor | None], str | None]
) -> dict[str, object]:
    """Return the `pages` object, which is that of `GET /credits/usage`."""
    given, size = request.cursor, len(grants.items)
    has_prev, has_next = grants.newer > 0, grants.newer + size < grants.total
    upwards = given is not None and given.direction is Direction.PREV
    if grants.first is None or grants.last is None:  # past the end, or above the newest
        oldest, newest = 0, given.ordinal if given is not None and upwards else 0
    else:
        oldest, newest = grants.last - 1, grants.first
    this = Cursor(Direction.NEXT, newest)
    if upwards and given is not None:
        this = Cursor(Direction.PREV, given.ordinal, newest if size < request.limit else NO_CEILING)
    page = grants.newer // request.limit + 1 if given else request.page
    if size == 0 and given is not None and not upwards:
        page = count_pages(grants.total, request.limit) + 1
    return {
        "object": "cursor",
        "page": page,
        "limit": request.limit,
        "total_items": grants.total,
        "total_pages": count_pages(grants.total, request.limit),
        "has_next": has_next,
        "has_prev": has_prev,
        "direction": "prev" if upwards else "next",
        "cursor": quote(this),
        "next_cursor": quote(Cursor(Direction.NEXT, newest if size == 0 else oldest)) if has_next else None,
        "prev_cursor": quote(Cursor(Direction.PREV, newest)) if has_prev else None,
    }


GRANTS = Statement("grants", ("state", "page", "limit", "cursor"), read)
