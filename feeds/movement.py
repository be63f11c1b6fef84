"""What is one movement of the credit ledger, and how is it rendered as an item?"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from typeid.codecs import base32


class Kind(StrEnum):
    """Why credits moved, in the order of the feeds' numbers."""

    ALLOT = "allot"
    CONSUME = "consume"
    OVERFLOW = "overflow"
    EXPIRE = "expire"
    REVOKE = "revoke"

    @property
    def letter(self) -> str:
        """Return the first letter, which is how the ledger stores a kind."""
        return self[0]


KIND_OF_LETTER = {kind.letter: kind for kind in Kind}
USAGE_CAUSED = frozenset({Kind.CONSUME, Kind.OVERFLOW})
"""The kinds that a usage causes: only they have a usage kind."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


class Movement(NamedTuple):
    """One record of the credit ledger. It never changes once it is written.

    `credits` is signed: positive for allot, negative for all other kinds. `usage_ref` is the grant's ref if no usage
    caused the movement. `hash` is defined by worker/ledger/hash_chain.py.

    The others are set when a movement is posted, not when it is read for a page. `ordinals` maps feed numbers to the
    movement's place in each of its feeds. `balance` is what remains of all grants after it; `total` is the sum of the
    credits of its narrowest feed, up to and with it. `draws` holds pairs: the number of a grant, and how many credits
    that grant gave. `labels` is JSON.
    """

    kind: Kind
    credits: int
    usage_kind: str | None
    usage_ref: str
    created_at: datetime
    ordinals: Mapping[int, int] = MappingProxyType({})
    balance: int = 0
    total: int = 0
    draws: tuple[tuple[int, int], ...] = ()
    labels: str | None = None
    hash: bytes = b""


ITEM_PREFIX = '{"object":"credit_entry","id":"'
"""The beginning that the JSON of all items shares."""


def render_item(movement: Movement) -> bytes:
    """Return a movement as the JSON of one `credit_entry`, the same bytes on every page.

    Built by hand: refs and usage kinds hold no character that JSON would escape.
    """
    usage_kind = f'"usage_kind":"{movement.usage_kind}",' if movement.usage_kind else ""
    return (
        f'{ITEM_PREFIX}{format_id(movement.created_at, movement.hash)}",'
        f'"kind":"{movement.kind}","credits":{movement.credits},{usage_kind}'
        f'"usage_ref":"{movement.usage_ref}","created_at":"{format_time(movement.created_at)}"}}'
    ).encode()


def format_id(created_at: datetime, movement_hash: bytes) -> str:
    """Return the id of a movement: a TypeID, `cent_` and 26 characters.

    It is not stored. It is the UUIDv7 of the movement's time whose random bits are the first of its hash: 48 bits for
    the milliseconds since 1970, 4 for the version, 12 from the hash, 2 for the variant, 62 from the hash.
    """
    milliseconds = (created_at - EPOCH) // MILLISECOND
    random_bits = int.from_bytes(movement_hash[:10]) & ~(0xF << 76 | 0b11 << 62)
    return f"cent_{base32.encode((milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | random_bits).to_bytes(16))}"


def format_time(instant: datetime) -> str:
    """Return an RFC 3339 time in UTC with `Z`, with microseconds only if they are not zero."""
    return format_utc(instant.astimezone(UTC))


@lru_cache(maxsize=1024)  # the movements of a batch share their time; a history formats each twice within 250 events
def format_utc(instant: datetime, digits: str = "auto") -> str:
    """Return a time as text; it must be in UTC.

    The cache compares times, and in a zone with summer time 2:30 before the change equals 2:30 after it.
    """
    return instant.replace(tzinfo=None).isoformat(timespec=digits) + "Z"
