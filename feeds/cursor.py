"""What is written in a cursor, and who may read it?"""

import binascii
import hmac
import struct
from base64 import b64decode, urlsafe_b64encode
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

from feeds.page import KINDS, Filter, Place

LAYOUT = struct.Struct(">BBHQQ")
TAG_BYTES = 16
CURSOR_CHARS = (LAYOUT.size + TAG_BYTES) * 4 // 3
NO_CEILING = 2**62


class Direction(IntEnum):
    """Which way a reader walks: `next` to older lines, `prev` to newer ones."""

    NEXT = 0
    PREV = 1


class Cursor(NamedTuple):
    """A fixed place in a feed.

    Going next: the line `ordinal` and older ones. Going prev: lines newer than `ordinal`, up to
    `ceiling`, which is set where a short newest page is to be shown again as it was.
    """

    direction: Direction
    ordinal: int
    ceiling: int = NO_CEILING


class BadCursor(ValueError):  # noqa: N818 -- the reader's mistake, by its name
    """Not a cursor, or one of another organisation. Start again from a page."""


class Signer(NamedTuple):
    """What signs the cursors and tags of one ledger. `usage_numbers` as in `feeds.schema.Ledger`."""

    secret: bytes
    usage_numbers: dict[str, int]

    def sign(self, use: bytes, facts: bytes, size: int) -> bytes:
        """Return a signature of so many bytes, good for one use: keyed BLAKE2b, a third of HMAC's cost."""
        return blake2b(facts, digest_size=size, key=self.secret, person=use).digest()


def place_cursor(cursor: Cursor, limit: int) -> Place:
    """Return where the cursor's page is."""
    if cursor.direction is Direction.NEXT:
        return Place(limit, ceiling=cursor.ordinal)
    return Place(limit, floor=cursor.ordinal, ceiling=min(cursor.ordinal + limit, cursor.ceiling))


def write_cursor(seal: Signer, org_id: str, feed: Filter, cursor: Cursor) -> str:
    """Return a cursor as a reader gets it: 48 characters of URL-safe base64, signed for organisation and feed."""
    kind = KINDS.index(feed.kind) + 1 if feed.kind else 0
    usage = seal.usage_numbers[feed.usage_kind] + 1 if feed.usage_kind else 0
    fields = LAYOUT.pack(cursor.direction, kind, usage, cursor.ordinal, cursor.ceiling)
    return urlsafe_b64encode(fields + sign(seal, org_id, fields)).decode()


def read_cursor(seal: Signer, org_id: str, text: str) -> tuple[Filter, Cursor]:
    """Return the feed that a cursor was made for, and its place there. Raises `BadCursor`."""
    if len(text) != CURSOR_CHARS:
        raise BadCursor
    try:
        sealed = b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadCursor from None
    fields, tag = sealed[: LAYOUT.size], sealed[LAYOUT.size :]
    if not hmac.compare_digest(sign(seal, org_id, fields), tag):
        raise BadCursor
    direction, kind, usage, ordinal, ceiling = LAYOUT.unpack(fields)
    if usage > len(seal.usage_numbers):  # a kind that the ledger learned after this process started
        raise BadCursor
    feed = Filter(KINDS[kind - 1] if kind else None, list(seal.usage_numbers)[usage - 1] if usage else None)
    return feed, Cursor(Direction(direction), ordinal, ceiling)


def sign(seal: Signer, org_id: str, fields: bytes) -> bytes:
    """Return the signature of a cursor's fields for one organisation."""
    return seal.sign(b"cursor 2", org_id.encode() + b"\0" + fields, TAG_BYTES)
