"""What is one movement of the credit ledger, and how is it rendered as an item?"""

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import uuid_utils
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

AnyUUID = UUID | uuid_utils.UUID
"""The class in which psycopg reads an id, or the one in which we make new ids, because it is seven times as fast."""


class Movement(NamedTuple):
    """One record of the credit ledger. It never changes once it is written.

    `credits` is signed: positive for allot, negative for all other kinds. `usage_ref` is the grant's ref if no usage
    caused the movement. `ordinals` maps feed numbers to the movement's place in that feed: all of its feeds when it is
    posted, none when it is read. `draws` holds pairs: the number of a grant, and how many credits that grant gave.
    """

    id: AnyUUID
    kind: Kind
    credits: int
    usage_kind: str | None
    usage_ref: str
    created_at: datetime
    ordinals: dict[int, int]
    draws: tuple[tuple[int, int], ...] = ()


ITEM_PREFIX = '{"object":"credit_entry","id":"'
"""The beginning that the JSON of all items shares."""


def render_item(movement: Movement) -> bytes:
    """Return a movement as the JSON of one `credit_entry`, the same bytes on every page.

    Built by hand: refs and usage kinds hold no character that JSON would escape.
    """
    usage_kind = f'"usage_kind":"{movement.usage_kind}",' if movement.usage_kind else ""
    return (
        f'{ITEM_PREFIX}{format_id(movement.id)}",'
        f'"kind":"{movement.kind}","credits":{movement.credits},{usage_kind}'
        f'"usage_ref":"{movement.usage_ref}","created_at":"{format_time(movement.created_at)}"}}'
    ).encode()


def format_id(movement_id: AnyUUID) -> str:
    """Return the TypeID of a movement: `cent_` and 26 characters."""
    return f"cent_{base32.encode(movement_id.bytes)}"


def format_time(instant: datetime) -> str:
    """Return an RFC 3339 time in UTC with `Z`, with microseconds only if they are not zero."""
    return format_utc(instant.astimezone(UTC))


@lru_cache(maxsize=64)  # the movements of a batch share their time
def format_utc(instant: datetime, digits: str = "auto") -> str:
    """Return a time as text; it must be in UTC.

    The cache compares times, and in a zone with summer time 2:30 before the change equals 2:30 after it.
    """
    return instant.replace(tzinfo=None).isoformat(timespec=digits) + "Z"
