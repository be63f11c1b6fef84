"""What is one line of the credit ledger, and how is it shown?"""

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
        """Return its first letter: how the ledger keeps it."""
        return self[0]


KIND_OF_LETTER = {kind.letter: kind for kind in Kind}
USAGE_CAUSED = frozenset({Kind.CONSUME, Kind.OVERFLOW})
"""The kinds that a usage causes: these alone have a usage kind."""


AnyUUID = UUID | uuid_utils.UUID
"""As psycopg reads an id, and as one is made: seven times as fast."""


class Movement(NamedTuple):
    """One line of the credit ledger, never changed once written.

    `credits` is signed: positive for allot, negative for all others. `usage_ref` is the grant's ref
    where no usage caused the line. `ordinals` maps the number of each feed that the line was read
    or posted for to its place there; `draws` says which grant (by number) gave how many credits.
    """

    id: AnyUUID
    kind: Kind
    credits: int
    usage_kind: str | None
    usage_ref: str
    created_at: datetime
    ordinals: dict[int, int]
    draws: tuple[tuple[int, int], ...] = ()


HEAD = '{"object":"credit_entry","id":"'
"""How the JSON of every `credit_entry` begins."""


def render(movement: Movement) -> bytes:
    """Return the JSON of one `credit_entry`, as every page serves it.

    Built by hand: refs and usage kinds hold no character that JSON would escape.
    """
    usage_kind = f'"usage_kind":"{movement.usage_kind}",' if movement.usage_kind else ""
    return (
        f'{HEAD}{format_id(movement.id)}",'
        f'"kind":"{movement.kind}","credits":{movement.credits},{usage_kind}'
        f'"usage_ref":"{movement.usage_ref}","created_at":"{format_time(movement.created_at)}"}}'
    ).encode()


def format_id(movement_id: AnyUUID) -> str:
    """Return the TypeID of a movement: `cent_` and 26 characters."""
    return f"cent_{base32.encode(movement_id.bytes)}"


def format_time(instant: datetime) -> str:
    """Return an RFC 3339 time in UTC with `Z`, microseconds only where they are not zero."""
    return format_utc(instant.astimezone(UTC))


@lru_cache(maxsize=64)  # the lines of a batch share their time
def format_utc(instant: datetime, digits: str = "auto") -> str:
    """Return a time that is in UTC: of another zone, the 2:30 before summer ends equals the 2:30 after it."""
    return instant.replace(tzinfo=None).isoformat(timespec=digits) + "Z"
