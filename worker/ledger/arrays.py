"""How do rows become the arrays that Postgres unnests?

The arrays are built by hand, as text: psycopg's per-element quoting took a tenth of posting time. In the queries that
write rows, a parameter has the name of its column.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from feeds.movement import Kind, Movement
from feeds.page import feed_numbers
from worker.ledger.hash_chain import format_draws, format_instant
from worker.ledger.posting import Grant, Organisation

NULL = "NULL"


class MovementRow(NamedTuple):
    """A movement as text: one element for each array that `insert_movements` takes."""

    position: str
    kind_ordinal: str
    usage_ordinal: str
    kind_usage_ordinal: str
    credits: str
    created_at: str
    movement_id: str
    org_no: str
    usage_number: str
    kind: str
    usage_ref: str
    hash: str
    draws: str


class Feeds(NamedTuple):
    """The numbers of the feeds that a movement belongs to. It has no usage feeds if no usage caused it."""

    everything: int
    kind: int
    usage: int | None = None
    kind_usage: int | None = None


@cache
def feeds_of(kind: Kind, usage_number: int | None) -> Feeds:
    """Return the feeds of all movements of this kind and usage kind."""
    return Feeds(*feed_numbers(kind, usage_number))


def format_movement(
    org_no: int, movement: Movement, usage_numbers: Mapping[str, int], movement_hash: bytes
) -> MovementRow:
    """Return a movement as the elements of arrays."""
    ordinals = movement.ordinals
    usage_number = None if movement.usage_kind is None else usage_numbers[movement.usage_kind]
    feeds = feeds_of(movement.kind, usage_number)
    return MovementRow(
        position=str(ordinals[feeds.everything]),
        kind_ordinal=str(ordinals[feeds.kind]),
        usage_ordinal=NULL if feeds.usage is None else str(ordinals[feeds.usage]),
        kind_usage_ordinal=NULL if feeds.kind_usage is None else str(ordinals[feeds.kind_usage]),
        credits=str(movement.credits),
        created_at=format_instant(movement.created_at),
        movement_id=movement.id.hex,
        org_no=str(org_no),
        usage_number=NULL if usage_number is None else str(usage_number),
        kind=movement.kind.letter,
        usage_ref=f'"{movement.usage_ref}"',
        hash=movement_hash.hex(),
        draws=f'"{format_draws(movement.draws)}"' if movement.draws else NULL,
    )


def format_movements(rows: Sequence[MovementRow]) -> dict[str, str]:
    """Return the parameters of `insert_movements`, given at least one row."""
    columns = zip(*rows, strict=True)
    return {name: f"{{{','.join(column)}}}" for name, column in zip(MovementRow._fields, columns, strict=True)}


def format_grants(grants: Sequence[tuple[int, Grant]]) -> dict[str, object]:
    """Return the parameters of `write_grants`, given pairs of an organisation's number and one of its grants."""
    columns: dict[str, object] = {
        name: format_array(getattr(grant, name) for _, grant in grants) for name in Grant.__slots__
    }
    # Reasons are free text, so psycopg must quote them.
    reasons = [grant.revoke_reason for _, grant in grants]
    return columns | {"org_no": format_array(org_no for org_no, _ in grants), "revoke_reason": reasons}


def format_organisations(org_nos: Mapping[str, int], organisations: Sequence[Organisation]) -> dict[str, str]:
    """Return the parameters of `write_organisations`, given the numbers of the organisations by id."""
    hashes = (organisation.last_hash.hex() if organisation.last_hash else None for organisation in organisations)
    return {
        "org_no": format_array(org_nos[organisation.org_id] for organisation in organisations),
        "counts": format_array(f"{{{','.join(map(str, organisation.counts))}}}" for organisation in organisations),
        "grants": format_array(organisation.grant_count for organisation in organisations),
        "last_created_at": format_array(format_instant(organisation.last_created_at) for organisation in organisations),
        "last_hash": format_array(hashes),
    }


def format_columns(rows: Iterable[Sequence[object]], *names: str) -> dict[str, str]:
    """Return the columns of rows as arrays, by name."""
    table = list(rows)
    return {name: format_array(row[index] for row in table) for index, name in enumerate(names)}


def format_array(values: Iterable[object]) -> str:
    """Return an array of numbers, times, ids, refs or None. None of these holds a character that must be escaped."""
    elements = [NULL if value is None else f'"{value}"' for value in values]
    return f"{{{','.join(elements)}}}"
