"""How do rows become the arrays that Postgres reads?

By hand, as text: they are many, and psycopg looks into every element for what it would have to quote. That was a tenth
of a posting's time.
"""

from collections.abc import Iterable, Mapping, Sequence

from feeds.movement import Movement
from feeds.schema import Ledger
from worker.ledger.hash_chain import format_draws, format_instant
from worker.ledger.posting import Grant, Organisation

NULL = "NULL"
LINE_COLUMNS = (
    "positions", "kind_ordinals", "usage_ordinals", "kind_usage_ordinals", "credits", "created_ats", "movement_ids",
    "org_nos", "usage_numbers", "kinds", "usage_refs", "hashes", "draws",
)  # fmt: skip


def format_columns(rows: Iterable[Sequence[object]], *names: str) -> dict[str, str]:
    """Turn rows into named columns, for unnest."""
    table = list(rows)
    return {name: format_array(row[index] for row in table) for index, name in enumerate(names)}


def format_array(values: Iterable[object]) -> str:
    """Return an array of numbers, times, ids, refs or None: none holds a character to escape."""
    elements = [NULL if value is None else f'"{value}"' for value in values]
    return f"{{{','.join(elements)}}}"


def format_movement(org_no: int, movement: Movement, ledger: Ledger, line_hash: bytes) -> tuple[str, ...]:
    """Return a movement as elements of the arrays that `LINE_COLUMNS` names."""
    position, kind_ordinal, *usage_ordinals = map(str, movement.ordinals.values())
    usage_ordinal, kind_usage_ordinal = usage_ordinals or (NULL, NULL)
    return (
        position,
        kind_ordinal,
        usage_ordinal,
        kind_usage_ordinal,
        str(movement.credits),
        format_instant(movement.created_at),
        movement.id.hex,
        str(org_no),
        NULL if movement.usage_kind is None else str(ledger.usage_numbers[movement.usage_kind]),
        movement.kind.letter,
        f'"{movement.usage_ref}"',
        line_hash.hex(),
        f'"{format_draws(movement.draws)}"' if movement.draws else NULL,
    )


def as_arrays(lines: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """Return lines as the columns that `insert_movements` takes."""
    columns_of_lines = zip(*lines, strict=True)
    return {name: f"{{{','.join(column)}}}" for name, column in zip(LINE_COLUMNS, columns_of_lines, strict=True)}


def format_grants(grants: Sequence[tuple[int, Grant]]) -> dict[str, object]:
    """Return grants as the columns that `write_grants` takes."""
    names = {name: f"{name}s" for name in Grant.__slots__}
    names |= {"credits": "credits", "priority": "priorities"}
    shown: dict[str, object] = {
        plural: format_array(getattr(grant, name) for _, grant in grants) for name, plural in names.items()
    }
    reasons = [grant.revoke_reason for _, grant in grants]  # in anybody's words, so psycopg's to quote
    return shown | {"org_nos": format_array(org_no for org_no, _ in grants), "revoke_reasons": reasons}


def format_organisations(org_nos: Mapping[str, int], organisations: Sequence[Organisation]) -> dict[str, object]:
    """Return organisations as the columns that `write_organisations` takes."""
    hashes = (organisation.last_hash.hex() if organisation.last_hash else None for organisation in organisations)
    return {
        "org_nos": format_array(org_nos[organisation.org_id] for organisation in organisations),
        "counts": format_array(f"{{{','.join(map(str, organisation.counts))}}}" for organisation in organisations),
        "grant_counts": format_array(organisation.grant_count for organisation in organisations),
        "last_created_ats": format_array(
            format_instant(organisation.last_created_at) for organisation in organisations
        ),
        "last_hashes": format_array(hashes),
    }
