"""How is a page of a feed served: its body, its ETag?"""

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from feeds.cursor import NO_CEILING, Cursor, Direction, Signer, place_cursor, write_cursor
from feeds.page import Filter, Place, Span, count_pages, cut, page_number, place_page

RENDERING = 1
"""The version of a body's form. Raise it whenever a body would differ for the same facts."""


class PageRequest(NamedTuple):
    """What a reader asks of one organisation's feeds: a numbered page, or where a cursor leads."""

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
        """Return which way the reader walks."""
        return self.cursor.direction if self.cursor else Direction.NEXT


def render_body(seal: Signer, org_id: str, ask: PageRequest, count: int, entries: Sequence[bytes]) -> bytes:
    """Return the body: entries (the JSON of lines, newest first) and the `pages` object of the same moment."""
    return b'{"object":"list","items":[%b],"pages":%b}' % (
        b",".join(entries),
        render_pages(seal, org_id, ask, count),
    )


def render_pages(seal: Signer, org_id: str, ask: PageRequest, count: int) -> bytes:
    """Return the `pages` object. Built by hand: nothing in it holds a character that JSON would escape."""
    span = cut(ask.place, count)
    has_next, has_prev = span.below > 0, span.newest < count

    def show(cursor: Cursor) -> str:
        return f'"{write_cursor(seal, org_id, ask.feed, cursor)}"'

    page = page_number(span, count, ask.limit) if ask.cursor else ask.page
    return (
        f'{{"object":"cursor","page":{page},"limit":{ask.limit},"total_items":{count},'
        f'"total_pages":{count_pages(count, ask.limit)},'
        f'"has_next":{"true" if has_next else "false"},"has_prev":{"true" if has_prev else "false"},'
        f'"direction":"{ask.direction.name.lower()}","cursor":{show(this_page(ask, span))},'
        f'"next_cursor":{show(Cursor(Direction.NEXT, span.below)) if has_next else "null"},'
        f'"prev_cursor":{show(Cursor(Direction.PREV, span.newest)) if has_prev else "null"}}}'
    ).encode()


def this_page(ask: PageRequest, span: Span) -> Cursor:
    """Return the cursor that leads to the same lines again, however many arrive meanwhile."""
    if ask.direction is Direction.NEXT:
        return Cursor(Direction.NEXT, span.newest)
    is_short = span.newest - span.below < ask.limit
    return Cursor(Direction.PREV, span.below, span.newest if is_short else NO_CEILING)


def make_etag(seal: Signer, org_id: str, ask: PageRequest, count: int, epoch: UUID) -> str:
    """Return the strong ETag: a function of all that the body is a function of."""
    feed, cursor = ask.feed, ask.cursor
    # No part holds a blank, so that different facts never read the same.
    facts = f"{RENDERING} {org_id} {feed.kind} {feed.usage_kind} {ask.limit} {ask.page} {count} {epoch.int}"
    if cursor is not None:
        facts += f" {cursor.direction:d} {cursor.ordinal} {cursor.ceiling}"
    return f'"{urlsafe_b64encode(seal.sign(b"etag", facts.encode(), 18)).decode()}"'


def matches(if_none_match: str, etag: str) -> bool:
    """Say whether an `If-None-Match` names this ETag, by weak comparison. Ours hold no comma."""
    named = [part.strip() for part in if_none_match.split(",")]
    return named == ["*"] or any(part.removeprefix("W/") == etag for part in named)
