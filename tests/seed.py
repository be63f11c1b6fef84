"""How does a test write a ledger without posting?"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from uuid_utils.compat import uuid7

from feeds.movement import USAGE_BORNE, Kind
from feeds.page import count_feeds, feed_numbers

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


def seed(connection: psycopg.Connection[Any], org_id: str, lines: Sequence[Line]) -> None:
    """Append these lines to an organisation's ledger. Line `position` has the ref `ref_{position}`."""
    connection.execute("INSERT INTO organisations (org_id) VALUES (%s) ON CONFLICT DO NOTHING", [org_id])
    [(org_no, counts)] = connection.execute("SELECT org_no, counts FROM organisations WHERE org_id = %s", [org_id])
    counts += [0] * (count_feeds(USAGE_KINDS) - len(counts))
    with connection.cursor() as cursor, cursor.copy("COPY movements FROM STDIN") as copy:
        for line in lines:
            usage_number = USAGE_KINDS.index(line.usage_kind) if line.usage_kind else None
            numbers = feed_numbers(line.kind, usage_number)
            for number in numbers:
                counts[number] += 1
            ordinals = [counts[number] for number in numbers] + [None] * (4 - len(numbers))
            copy.write_row(row(org_no, ordinals, line, usage_number))
    connection.execute("UPDATE organisations SET counts = %s WHERE org_no = %s", [counts, org_no])


def row(org_no: int, ordinals: list[int | None], line: Line, usage_number: int | None) -> tuple[Any, ...]:
    """Return a row of `movements`, its columns in the table's order."""
    position = ordinals[0]
    assert position is not None
    credits_ = 100 if line.kind is Kind.ALLOT else -1 - position % 7
    created_at = FIRST_AT + timedelta(seconds=position)
    draws = "{{1,1}}" if line.kind is Kind.CONSUME else None
    assert (usage_number is not None) == (line.kind in USAGE_BORNE)
    facts = (credits_, created_at, uuid7(), line.kind.value, usage_number, f"ref_{position}", draws)
    return (org_no, *ordinals, *facts)
