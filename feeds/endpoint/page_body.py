"""How is a page of a feed rendered: its body and its ETag?"""

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from feeds.cursor import NO_CEILING, Cursor, Direction, Signer, place_cursor, write_cursor
from feeds.page import Filter, Place, Span, count_pages, cut, page_number, place_page

BODY_VERSION = 1
"""It is part of every ETag: raise it when the same facts are rendered as other bytes."""


class PageRequest(NamedTuple):
    """What a caller requests of one organisation's feeds: a numbered page, or the page at a cursor."""

    feed: Filter
    limit: int
    page: int = 1
    cursor: Cursor | None = None

    @property
    def place(self) -> Place:
        """Return where the page is."""
        return place_cursor(self.cursor, self.limit) if self.cursor else place_page(self.page, self.limit)

    @property
    def direction(self) -> Direction:
        """Return the direction in which the caller pages."""
        return self.cursor.direction if self.cursor else Direction.NEXT


def render_body(signer: Signer, org_id: str, request: PageRequest, count: int, items: Sequence[bytes]) -> bytes:
    """Return the body: the items, newest first, and the `pages` object for a feed of `count` items."""
    return b'{"object":"list","items":[%b],"pages":%b}' % (
        b",".join(items),
        render_pages(signer, org_id, request, count),
    )


def render_pages(signer: Signer, org_id: str, request: PageRequest, count: int) -> bytes:
    """Return the `pages` object. Built by hand: nothing in it holds a character that JSON would escape."""
    span = cut(request.place, count)
    has_next, has_prev = span.below > 0, span.newest < count

    def quote(cursor: Cursor) -> str:
        return f'"{write_cursor(signer, org_id, request.feed, cursor)}"'

    page = page_number(span, count, request.limit) if request.cursor else request.page
    return (
        f'{{"object":"cursor","page":{page},"limit":{request.limit},"total_items":{count},'
        f'"total_pages":{count_pages(count, request.limit)},'
        f'"has_next":{"true" if has_next else "false"},"has_prev":{"true" if has_prev else "false"},'
        f'"direction":"{request.direction.name.lower()}","cursor":{quote(this_page(request, span))},'
        f'"next_cursor":{quote(Cursor(Direction.NEXT, span.below)) if has_next else "null"},'
        f'"prev_cursor":{quote(Cursor(Direction.PREV, span.newest)) if has_prev else "null"}}}'
    ).encode()


def this_page(request: PageRequest, span: Span) -> Cursor:
    """Return the cursor of this page: it gives the same items again, however many are added meanwhile."""
    if request.direction is Direction.NEXT:
        return Cursor(Direction.NEXT, span.newest)
    is_short = span.newest - span.below < request.limit
    return Cursor(Direction.PREV, span.below, span.newest if is_short else NO_CEILING)


def make_etag(signer: Signer, org_id: str, request: PageRequest, count: int, epoch: UUID) -> str:
    """Return the strong ETag: a function of everything that the body is a function of."""
    feed, cursor = request.feed, request.cursor
    # No part holds a blank, so different facts never give the same text.
    facts = f"{BODY_VERSION} {org_id} {feed.kind} {feed.usage_kind} {request.limit} {request.page} {count} {epoch.int}"
    if cursor is not None:
        facts += f" {cursor.direction:d} {cursor.ordinal} {cursor.ceiling}"
    return f'"{urlsafe_b64encode(signer.sign(b"etag", facts.encode(), 18)).decode()}"'


def matches(if_none_match: str, etag: str) -> bool:
    """Tell whether an `If-None-Match` names this ETag, by weak comparison. Our ETags hold no comma."""
    named = [part.strip() for part in if_none_match.split(",")]
    return named == ["*"] or any(part.removeprefix("W/") == etag for part in named)
