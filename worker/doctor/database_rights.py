"""May the role of a connection do its work in the database, and no more?

The rights are those of `worker/migrations/roles.sql`.
"""

from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import tuple_row

from feeds.database import READING, begin
from feeds.queries import load_queries
from worker.doctor.finding import Finding, fine, list_names, mend, note

SQL = load_queries(__file__)

TABLES = (
    "ledger", "usage_kinds", "schema_migrations", "stream_offsets", "organisations",
    "movements", "movement_labels", "grants", "dead_letters", "api_keys", "members",
)  # fmt: skip
Right = tuple[str, str, str | None]
"""What may be done, to which table, and to which column (None: to all)."""

WORKER_NEEDS: tuple[Right, ...] = (
    *(("SELECT", table, None) for table in TABLES),
    ("UPDATE", "ledger", "epoch"),
    *(("UPDATE", "stream_offsets", column) for column in ("last_entry_id", "moved_at")),
    ("INSERT", "organisations", "org_id"),
    *(("UPDATE", "organisations", column) for column in ("counts", "totals", "grants", "pending", "revision")),
    *(("UPDATE", "organisations", column) for column in ("last_created_at", "last_hash")),
    *(("INSERT", table, None) for table in TABLES if table in {"movements", "movement_labels", "grants"}),
    *(("INSERT", table, None) for table in ("dead_letters", "api_keys", "members")),
    *(("UPDATE", "grants", column) for column in ("remaining", "drawn", "expired", "revoked", "open", "revoke_reason")),
    *(("UPDATE", "grants", f"{moment}_position") for moment in ("allot", "first_draw", "last_draw", "close")),
    ("DELETE", "dead_letters", None),
    ("UPDATE", "api_keys", "revoked_at"),
    ("UPDATE", "members", "role"),
    ("DELETE", "members", None),
)
READER_NEEDS: tuple[Right, ...] = (
    *(("SELECT", table, None) for table in TABLES if table in {"ledger", "usage_kinds", "schema_migrations"}),
    *(("SELECT", table, None) for table in ("movements", "movement_labels", "grants", "api_keys", "members")),
    *(("SELECT", "organisations", column) for column in ("org_no", "org_id", "counts", "totals", "grants", "revision")),
    ("UPDATE", "api_keys", "last_used_at"),
)
FORBIDDEN: tuple[Right, ...] = tuple((right, "movements", None) for right in ("UPDATE", "DELETE", "TRUNCATE"))


class Role(NamedTuple):
    """The role of a connection.

    `sees_all`: row security hides no movement from it. `lacks`: what it needs and may not do. `may_change`: which of
    `FORBIDDEN` it may do.
    """

    name: str
    is_superuser: bool
    is_owner: bool
    sees_all: bool
    lacks: list[str]
    may_change: list[str]


def read_role(connection: Connection[Any], needs: tuple[Right, ...]) -> Role:
    """Return the role of a connection. The schema must be complete."""
    with begin(connection, READING), connection.cursor(row_factory=tuple_row) as cursor:
        [row] = cursor.execute(SQL["read_role"]).fetchall()
        lacks = find_lacking(cursor, needs)
        forbidden = find_lacking(cursor, FORBIDDEN)
    may_change = [text for right in FORBIDDEN if (text := format_right(right)) not in forbidden]
    return Role._make((*row, lacks, may_change))


def find_lacking(cursor: Any, rights: tuple[Right, ...]) -> list[str]:
    """Return which of these rights the current role does not have, as text."""
    actions, tables, columns = (list(values) for values in zip(*rights, strict=True))
    rows = cursor.execute(SQL["find_lacking"], {"actions": actions, "tables": tables, "columns": columns}).fetchall()
    return [format_right(row) for row in rows]


def format_right(right: Right) -> str:
    """Return a right as SQL writes it."""
    action, table, column = right
    return f"{action} ({column}) ON {table}" if column else f"{action} ON {table}"


def judge_worker(role: Role) -> list[Finding]:
    """Judge the role that posts."""
    grant = "Run `usage-feeds migrate --roles` as the owner, then GRANT usage_feeds_worker to this role."
    if role.lacks:
        what = f"The role `{role.name}` may not {list_names(role.lacks)}."
        return [mend("role", what, "Posting or a command of usage-feeds would fail.", grant)]
    if not role.sees_all:
        what = f"Row security hides the movements from the role `{role.name}`."
        return [mend("role", what, "Nothing can be posted, and `verify` would see an empty ledger.", grant)]
    if role.is_superuser or role.is_owner:
        what = f"The role `{role.name}` is a superuser." if role.is_superuser else f"`{role.name}` owns the tables."
        why = "A mistake, or a stolen password, could change movements."
        to_do = "For production, create roles with fewer rights: `usage-feeds migrate --roles` (deploy/README.md)."
        return [note("role", what, why, to_do)]
    if role.may_change:
        what = f"The role `{role.name}` may {list_names(role.may_change)}."
        return [note("role", what, "No program of usage-feeds needs that.", "REVOKE it.")]
    return [fine("role", f"The role `{role.name}` may post, but not change or remove a movement.")]


def judge_reader(role: Role) -> list[Finding]:
    """Judge the role of the endpoint."""
    grant = "GRANT usage_feeds_reader to a role of the endpoint's own, and name it in READER_DATABASE_URL."
    if role.lacks:
        what = f"The role `{role.name}` may not {list_names(role.lacks)}."
        return [mend("role", what, "The endpoint could not answer.", f"Run `usage-feeds migrate --roles`. {grant}")]
    if role.is_superuser or role.is_owner or role.may_change:
        what = f"The endpoint's role `{role.name}` may change movements."
        return [note("role", what, "The endpoint only reads, and faces your customers.", grant)]
    if role.sees_all:
        what = f"Row security does not limit the endpoint's role `{role.name}`."
        return [note("role", what, "A mistake in a query could show another organisation's movements.", grant)]
    return [fine("role", f"The role `{role.name}` reads only the organisation that it answers for.")]
