"""How does a test write a ledger without posting?"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from feeds.cached import writer
from feeds.cached.epoch import read_epoch
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import USAGE_CAUSED, Kind, Movement
from feeds.page import count_feeds, feed_numbers
from worker.ledger.hash_chain import format_draws, initial_hash, next_hash

USAGE_KINDS = ("ai_usage", "tm_usage")
FIRST_AT = datetime(2026, 6, 1, 10, tzinfo=UTC)
ENOUGH = 10**9
"""The balance before the first movement, so that no order of kinds makes it negative."""


class MovementKind(NamedTuple):
    """What a test decides about a seeded movement. The rest follows from its position."""

    kind: Kind
    usage_kind: str | None = None


ALLOT = MovementKind(Kind.ALLOT)
EXPIRE = MovementKind(Kind.EXPIRE)
CONSUME_AI = MovementKind(Kind.CONSUME, "ai_usage")
CONSUME_TM = MovementKind(Kind.CONSUME, "tm_usage")
OVERFLOW_AI = MovementKind(Kind.OVERFLOW, "ai_usage")
MIXED = (ALLOT, CONSUME_AI, CONSUME_TM, OVERFLOW_AI, CONSUME_AI, EXPIRE, CONSUME_TM)


def seed_published(
    connection: psycopg.Connection[Any], redis_url: str, org_id: str, kinds: Sequence[MovementKind]
) -> None:
    """Append movements of these kinds, and publish them as a worker does that has run for a while."""
    feeds_redis = WorkerConnection(redis_url)
    feeds_redis.note_epoch(read_epoch(connection), since=float("-inf"))
    try:
        writer.publish(feeds_redis, connection, {org_id: seed(connection, org_id, kinds)})
    finally:
        feeds_redis.close()


def seed(connection: psycopg.Connection[Any], org_id: str, kinds: Sequence[MovementKind]) -> list[Movement]:
    """Append movements of these kinds to an organisation's ledger, and return them. The cached feeds do not change.

    The movement at `position` has the ref `ref_{position}`.
    """
    movements = []
    connection.execute("INSERT INTO organisations (org_id) VALUES (%s) ON CONFLICT DO NOTHING", [org_id])
    select = "SELECT org_no, counts, totals, last_hash FROM organisations WHERE org_id = %s"
    [(org_no, counts, totals, last_hash)] = connection.execute(select, [org_id])
    last_hash = last_hash or initial_hash(org_id)
    counts += [0] * (count_feeds(USAGE_KINDS) - len(counts))
    totals += [0] * (count_feeds(USAGE_KINDS) - len(totals))
    with connection.cursor() as cursor, cursor.copy("COPY movements FROM STDIN") as copy:
        for wanted in kinds:
            usage_number = USAGE_KINDS.index(wanted.usage_kind) if wanted.usage_kind else None
            numbers = feed_numbers(wanted.kind, usage_number)
            moved = 100 if wanted.kind is Kind.ALLOT else -1 - (counts[0] + 1) % 7
            for number in numbers:
                counts[number] += 1
                totals[number] += moved
            movement = make_movement(wanted, {number: counts[number] for number in numbers}, moved, totals)
            last_hash = next_hash(last_hash, movement)
            movements.append(movement._replace(hash=last_hash))
            copy.write_row(table_row(org_no, movements[-1], usage_number))
    update = "UPDATE organisations SET counts = %s, totals = %s, last_hash = %s WHERE org_no = %s"
    connection.execute(update, [counts, totals, last_hash, org_no])
    return movements


def make_movement(wanted: MovementKind, ordinals: Mapping[int, int], moved: int, totals: Sequence[int]) -> Movement:
    """Return the wanted movement of so many credits at a position, which is its ordinal in feed 0."""
    position = ordinals[0]
    return Movement(
        kind=wanted.kind,
        credits=moved,
        usage_kind=wanted.usage_kind,
        usage_ref=f"ref_{position}",
        created_at=FIRST_AT + timedelta(seconds=position),
        ordinals=ordinals,
        balance=ENOUGH + totals[0] - totals[3],
        total=totals[max(ordinals)],
        draws=((1, -moved),) if wanted.kind is Kind.CONSUME else (),
    )


def table_row(org_no: int, movement: Movement, usage_number: int | None) -> tuple[Any, ...]:
    """Return a row of the table `movements`, with the columns in the table's order."""
    ordinals: list[int | None] = list(movement.ordinals.values())
    assert (usage_number is not None) == (movement.kind in USAGE_CAUSED)
    facts = (
        movement.credits,
        movement.balance,
        movement.total,
        movement.created_at,
        org_no,
        usage_number,
        movement.kind.letter,
        movement.usage_ref,
        movement.hash,
        format_draws(movement.draws) or None,
    )
    return (*ordinals, *[None] * (4 - len(ordinals)), *facts)
