"""How does each line of an organisation's ledger prove those before it?

A line's hash is the SHA-256 over the hash before it (32 bytes) and the line's content; before the first line
stands the SHA-256 of the `org_id`. Whoever noted a position and its hash can tell later whether anything up to
there was changed: `verify ORG --from POSITION --hash HASH`.
"""

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256

from feeds.movement import Movement, format_utc
from feeds.page import EVERYTHING


def start_chain(org_id: str) -> bytes:
    """Return what stands in for the hash before an organisation's first line."""
    return sha256(org_id.encode()).digest()


def chain(previous: bytes, movement: Movement) -> bytes:
    """Return a line's hash, given that of the line before it."""
    return sha256(previous + content(movement)).digest()


def content(movement: Movement) -> bytes:
    """Return what is hashed of a line: eight fields between single spaces, which no field holds.

    Position, id (32 hexadecimal digits), kind's letter, credits, usage kind or `-`, ref, time in UTC with six digits of
    the second, draws or `-`: `7 018f… c -10 ai_usage u1 2026-06-01T10:00:00.000000Z 1:4,2:6`.
    """
    return (
        f"{movement.ordinals[EVERYTHING]} {movement.id.hex} {movement.kind.letter} {movement.credits}"
        f" {movement.usage_kind or '-'} {movement.usage_ref} {format_instant(movement.created_at)}"
        f" {format_draws(movement.draws) or '-'}"
    ).encode()


def format_instant(instant: datetime) -> str:
    """Return a time in UTC with six digits of the second, which Postgres reads too."""
    return format_utc(instant.astimezone(UTC), "microseconds")


@lru_cache(maxsize=16)  # for the hash, and then for the line
def format_draws(draws: tuple[tuple[int, int], ...]) -> str:
    """Return which grant (by number) gave how many credits, as the ledger keeps it."""
    return ",".join([f"{grant_no}:{drawn}" for grant_no, drawn in draws])
