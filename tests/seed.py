"""How does a test write a ledger without posting?"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from uuid_utils.compat import uuid7

from feeds.cached import writer
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import USAGE_CAUSED, Kind, Movement
from feeds.page import count_feeds, feed_numbers
from worker.ledger.hash_chain import chain, format_draws, start_chain

USAGE_KINDS = ("ai_usage", "tm_usage")
FIRST_AT = datetime(2026, 6, 1, 10, tzinfo=UTC)


class Line(NamedTuple):
    """What a seeded movement is; all else follows from its place."""

    kind: Kind
    usage_kind: str | None = None


ALLOT = Line(Kind.ALLOT)
EXPIRE = Line(Kind.EXPIRE)
CONSUME_AI = Line(Kind.CONSUME, "ai_usage")
CONSUME_TM = Line(Kind.CONSUME, "tm_usage")
OVERFLOW_AI = Line(Kind.OVERFLOW, "ai_usage")
MIXED = (ALLOT, CONSUME_AI, CONSUME_TM, OVERFLOW_AI, CONSUME_AI, EXPIRE, CONSUME_TM)


def seed_shown(connection: psycopg.Connection[Any], redis_url: str, org_id: str, lines: Sequence[Line]) -> None:
    """Append these lines, and have the cached feeds show them, as a worker that has run for a while does."""
    link = WorkerConnection(redis_url)
    link.know(writer.read_epoch(connection), since=float("-inf"))
    try:
        writer.show(link, connection, {org_id: seed(connection, org_id, lines)})
    finally:
        link.close()


def seed(connection: psycopg.Connection[Any], org_id: str, lines: Sequence[Line]) -> list[Movement]:
    """Append these lines to an organisation's ledger, behind the cached feeds' back, and return them.

    Line `position` has the ref `ref_{position}`.
    """
    movements = []
    connection.execute("INSERT INTO organisations (org_id) VALUES (%s) ON CONFLICT DO NOTHING", [org_id])
    select = "SELECT org_no, counts, last_hash FROM organisations WHERE org_id = %s"
    [(org_no, counts, last_hash)] = connection.execute(select, [org_id])
    last_hash = last_hash or start_chain(org_id)
    counts += [0] * (count_feeds(USAGE_KINDS) - len(counts))
    with connection.cursor() as cursor, cursor.copy("COPY movements FROM STDIN") as copy:
        for line in lines:
            usage_number = USAGE_KINDS.index(line.usage_kind) if line.usage_kind else None
            numbers = feed_numbers(line.kind, usage_number)
            for number in numbers:
                counts[number] += 1
            movement = make(line, {number: counts[number] for number in numbers})
            movements.append(movement)
            last_hash = chain(last_hash, movement)
            copy.write_row(row(org_no, movement, usage_number, last_hash))
    update = "UPDATE organisations SET counts = %s, last_hash = %s WHERE org_no = %s"
    connection.execute(update, [counts, last_hash, org_no])
    return movements


def make(line: Line, ordinals: dict[int, int]) -> Movement:
    """Return the movement that a line is at its place."""
    position = ordinals[0]
    moved = 100 if line.kind is Kind.ALLOT else -1 - position % 7
    return Movement(
        id=uuid7(),
        kind=line.kind,
        credits=moved,
        usage_kind=line.usage_kind,
        usage_ref=f"ref_{position}",
        created_at=FIRST_AT + timedelta(seconds=position),
        ordinals=ordinals,
        draws=((1, -moved),) if line.kind is Kind.CONSUME else (),
    )


def row(org_no: int, movement: Movement, usage_number: int | None, line_hash: bytes) -> tuple[Any, ...]:
    """Return a row of `movements`, its columns in the table's order."""
    ordinals: list[int | None] = list(movement.ordinals.values())
    assert (usage_number is not None) == (movement.kind in USAGE_CAUSED)
    facts = (
        movement.credits,
        movement.created_at,
        movement.id,
        org_no,
        usage_number,
        movement.kind.letter,
        movement.usage_ref,
        line_hash,
        format_draws(movement.draws) or None,
    )
    return (*ordinals, *[None] * (4 - len(ordinals)), *facts)
