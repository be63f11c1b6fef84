"""How is a usage posted to a plain ledger? In one transaction, once."""

from typing import NamedTuple

from psycopg import Connection

LOCK = "SELECT movements FROM organisations WHERE id = %s FOR UPDATE"
KNOWN = "SELECT usage_kind, sum(credits) FROM movements WHERE org_id = %s AND usage_ref = %s GROUP BY usage_kind"
GRANTS = """
    SELECT id, remaining FROM grants
    WHERE org_id = %s AND remaining > 0 AND (expires_at IS NULL OR expires_at > now())
    ORDER BY priority, expires_at, id
"""
DRAW = "UPDATE grants SET remaining = remaining - %s WHERE id = %s"
INSERT = """
    INSERT INTO movements (org_id, position, kind, credits, usage_kind, usage_ref) VALUES (%s, %s, %s, %s, %s, %s)
"""
COUNT = "UPDATE organisations SET movements = %s WHERE id = %s"


class Conflict(Exception):  # noqa: N818 -- the name says what is wrong
    """Two different usages share a ref."""


class Usage(NamedTuple):
    """A usage of an organisation."""

    org_id: int
    usage_ref: str
    usage_kind: str
    credits: int


def post(connection: Connection, usage: Usage) -> None:
    """Post a usage unless it was posted before. The connection must be in autocommit mode."""
    with connection.transaction():
        [position] = connection.execute(LOCK, [usage.org_id]).fetchone()
        known = connection.execute(KNOWN, [usage.org_id, usage.usage_ref]).fetchone()
        if known is None:
            write(connection, usage, position)
        elif known != (usage.usage_kind, -usage.credits):
            raise Conflict(usage.usage_ref)


def write(connection: Connection, usage: Usage, position: int) -> None:
    """Draw from the grants in their order. Write a movement for the drawn credits, and one for the rest."""
    to_draw = usage.credits
    for grant_id, remaining in connection.execute(GRANTS, [usage.org_id]).fetchall():
        drawn = min(to_draw, remaining)
        connection.execute(DRAW, [drawn, grant_id])
        to_draw -= drawn
        if not to_draw:
            break
    for kind, amount in (("consume", usage.credits - to_draw), ("overflow", to_draw)):
        if amount:
            position += 1
            row = [usage.org_id, position, kind, -amount, usage.usage_kind, usage.usage_ref]
            connection.execute(INSERT, row)
    connection.execute(COUNT, [position, usage.org_id])
