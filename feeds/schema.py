"""Do the database's schema and facts match this program and its settings?"""

from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from feeds.database import READING, begin
from feeds.queries import load_queries
from feeds.settings import LedgerFacts

SQL = load_queries(__file__)

SCHEMA_VERSION = "0001"
"""The last migration that this program knows."""


class UnusableSetup(Exception):  # noqa: N818 -- it names a state, which the message says how to fix
    """This process cannot work with the database or the settings. The message is one line that says what to do."""


class WrongEncoding(UnusableSetup):
    """The database cannot store every text. Create one in UTF8."""

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"The database's encoding is {encoding}, but usage-feeds needs UTF8:"
            " create a database with ENCODING 'UTF8', and set DATABASE_URL to it."
        )


class TriggersOff(UnusableSetup):
    """Postgres does not run the triggers and foreign keys that protect the ledger. Reset the role's setting."""

    def __init__(self, role: str) -> None:
        super().__init__(
            f"session_replication_role is {role} for this role or database, so the ledger is unprotected:"
            " reset it with ALTER ROLE … RESET session_replication_role (or ALTER DATABASE …)."
        )


class SchemaBehind(UnusableSetup):
    """The database lacks migrations. Run `usage-feeds migrate`."""

    def __init__(self, version: str | None) -> None:
        found = f"is at {version}" if version else "is empty"
        super().__init__(
            f"The database's schema {found}, but this program needs {SCHEMA_VERSION}: run `usage-feeds migrate`."
        )


class LedgerEmpty(UnusableSetup):
    """The tables exist, but the row with the ledger's facts does not, as in a restore. Finish it, then migrate."""

    def __init__(self) -> None:
        super().__init__("The ledger's row is missing: finish the restore, then run `usage-feeds migrate`.")


class SchemaAhead(UnusableSetup):
    """A newer program migrated the database. Install that version here."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"The database's schema is at {version}, but this program knows only {SCHEMA_VERSION}:"
            " install the newer usage-feeds that ran `usage-feeds migrate`."
        )


class LedgerTooOld(UnusableSetup):
    """The ledger was made before its movements had balances. Make a new one."""

    def __init__(self) -> None:
        super().__init__(
            "This ledger was made by a version before 0.2, and its movements have no balances, so it cannot be brought"
            " up to date: create a new database, set DATABASE_URL to it, and run `usage-feeds migrate`."
        )


class SettingsDiffer(UnusableSetup):
    """A setting differs from the ledger. Set the variable to the ledger's value, or migrate."""

    def __init__(self, variable: str, here: object, in_ledger: object) -> None:
        self.variable, self.here, self.in_ledger = variable, here, in_ledger
        super().__init__(
            f"{variable} is {here} here, but {in_ledger} in the ledger:"
            f" set {variable}={in_ledger}, or change the ledger with `usage-feeds migrate`."
        )


class Ledger(NamedTuple):
    """The facts of the whole ledger. `usage_numbers` is in the order of its numbers, which start at 0.

    `read_at` is when the facts were read, on the monotonic clock. `schema` is the Postgres schema with the tables,
    `isolation` the default isolation level of database and role.
    """

    epoch: UUID
    cursor_secret: bytes
    event_shards: int
    expiry_grace_s: int
    usage_numbers: dict[str, int]
    read_at: float
    schema: str
    isolation: str

    @property
    def usage_kinds(self) -> tuple[str, ...]:
        """Return the usage kinds in the order of their numbers: the number is the index."""
        return tuple(self.usage_numbers)


def check_ledger(connection: Connection[Any], settings: LedgerFacts) -> Ledger:
    """Return the ledger's facts. Raises `UnusableSetup` if this program or these settings do not match them."""
    with begin(connection, READING), connection.cursor(row_factory=tuple_row) as cursor:
        check_surroundings(cursor)
        check_version(read_version(cursor))
        ledger = read_ledger(cursor)
    if ledger is None:
        raise SchemaBehind(None)
    if settings.event_shards != ledger.event_shards:
        raise SettingsDiffer("EVENT_SHARDS", settings.event_shards, ledger.event_shards)
    if set(settings.usage_kinds) != set(ledger.usage_numbers):
        raise SettingsDiffer("USAGE_KINDS", ",".join(settings.usage_kinds), ",".join(ledger.usage_numbers))
    if settings.expiry_grace_s != ledger.expiry_grace_s:
        raise SettingsDiffer("EXPIRY_GRACE_S", settings.expiry_grace_s, ledger.expiry_grace_s)
    return ledger


def check_surroundings(cursor: Cursor[Any]) -> None:
    """Raise `WrongEncoding` or `TriggersOff` if the database has a setting with which no promise could be kept."""
    encoding, role = cursor.execute(SQL["read_surroundings"]).fetchall()[0]
    if encoding != "UTF8":
        raise WrongEncoding(encoding)
    if role == "replica":
        raise TriggersOff(role)


def check_version(version: str | None) -> None:
    """Raise `SchemaBehind` or `SchemaAhead` unless the schema is the one that this program knows."""
    if version is None or version < SCHEMA_VERSION:
        raise SchemaBehind(version)
    if version > SCHEMA_VERSION:
        raise SchemaAhead(version)


def read_version(cursor: Cursor[Any]) -> str | None:
    """Return the version of the last applied migration, or None if there is none. Raises `LedgerTooOld`."""
    is_ours, is_old = cursor.execute(SQL["find_migrations"]).fetchall()[0]
    if is_old:
        raise LedgerTooOld
    if not is_ours:
        return None
    row = cursor.execute(SQL["read_version"]).fetchone()
    return row[0] if row else None


def read_ledger(cursor: Cursor[Any]) -> Ledger | None:
    """Return the ledger's facts, or None if `migrate` has not recorded them yet."""
    row = cursor.execute(SQL["read_ledger"]).fetchone()
    if row is None:
        return None
    epoch, event_shards, expiry_grace_s, cursor_secret = row
    schema, isolation = cursor.execute(SQL["read_defaults"]).fetchall()[0]
    usage_numbers = dict(cursor.execute(SQL["read_usage_kinds"]).fetchall())
    return Ledger(
        epoch, bytes(cursor_secret), event_shards, expiry_grace_s, usage_numbers, monotonic(), schema, isolation
    )
