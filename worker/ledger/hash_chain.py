"""How does the hash of a movement prove all movements before it?

The hash of a movement is the SHA-256 over the previous movement's hash (32 bytes) and the movement's content. The first
movement of an organisation takes the SHA-256 of the `org_id` as the previous hash. If you note a position and its hash,
you can check later that nothing up to that position was changed: `verify ORG --from POSITION --hash HASH`.
"""

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256

from feeds.movement import Movement, format_utc
from feeds.page import EVERYTHING


def initial_hash(org_id: str) -> bytes:
    """Return what an organisation's first movement takes as the previous hash."""
    return sha256(org_id.encode()).digest()


def next_hash(previous: bytes, movement: Movement) -> bytes:
    """Return the hash of a movement, given the hash of the movement before it."""
    return sha256(previous + hashed_content(movement)).digest()


def hashed_content(movement: Movement) -> bytes:
    """Return what is hashed of a movement: ten fields separated by single spaces. Only the last may hold spaces.

    Position, letter of the kind, credits, balance, total, usage kind or `-`, ref, time in UTC with six digits of the
    second, draws or `-`, labels or `-`: `7 c -10 90 -35 ai_usage u1 2026-06-01T10:00:00.000000Z 1:4,2:6 {"seat":"9"}`.
    """
    return (
        f"{movement.ordinals[EVERYTHING]} {movement.kind.letter} {movement.credits} {movement.balance} {movement.total}"
        f" {movement.usage_kind or '-'} {movement.usage_ref} {format_instant(movement.created_at)}"
        f" {format_draws(movement.draws) or '-'} {movement.labels or '-'}"
    ).encode()


def format_instant(instant: datetime) -> str:
    """Return a time in UTC with six digits of the second. Postgres reads this form too."""
    return format_utc(instant.astimezone(UTC), "microseconds")


@lru_cache(maxsize=1024)  # of all movements that are sent together, first for their hashes, then for the column
def format_draws(draws: tuple[tuple[int, int], ...]) -> str:
    """Return which grant (by number) gave how many credits, as the ledger stores it."""
    return ",".join([f"{grant_no}:{drawn}" for grant_no, drawn in draws])
