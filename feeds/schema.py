"""Is this database the ledger that this process was set up for?"""

from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from feeds.queries import load_queries
from feeds.settings import LedgerFacts

SQL = load_queries(__file__)

SCHEMA_VERSION = "0004"
"""The last migration that this program knows."""


class UnusableSetup(Exception):  # noqa: N818 -- a state of things that the message says how to end
    """The database, or the settings, will not do. The message is one line that says what to do."""


class SchemaBehind(UnusableSetup):
    """The database lacks migrations. Run `usage-feeds migrate`."""

    def __init__(self, version: str | None) -> None:
        found = f"is at {version}" if version else "is empty"
        super().__init__(
            f"The database's schema {found}, this program needs {SCHEMA_VERSION}: run `usage-feeds migrate`."
        )


class LedgerEmpty(UnusableSetup):
    """The tables exist, but the ledger's own row does not, as in the middle of a restore. Finish it, then migrate."""

    def __init__(self) -> None:
        super().__init__("The ledger's row is missing: finish the restore, then run `usage-feeds migrate`.")


class SchemaAhead(UnusableSetup):
    """The database was migrated by a newer program. Install that one here."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"The database's schema is at {version}, this program knows {SCHEMA_VERSION}:"
            " install the newer usage-feeds that ran `usage-feeds migrate`."
        )


class SettingsDiffer(UnusableSetup):
    """A setting is not the ledger's. Set the variable to the ledger's value, or migrate."""

    def __init__(self, variable: str, here: object, ledgers: object) -> None:
        self.variable, self.here, self.ledgers = variable, here, ledgers
        super().__init__(
            f"{variable} is {here} here, but {ledgers} in the ledger:"
            f" set {variable}={ledgers}, or change the ledger with `usage-feeds migrate`."
        )


class Ledger(NamedTuple):
    """What is true of the whole ledger. `usage_numbers` is in the order of the numbers, which start at 0.

    `read_at`: when it was read, in seconds of this machine's monotonic clock.
    """

    epoch: UUID
    cursor_secret: bytes
    event_shards: int
    expiry_grace_s: int
    usage_numbers: dict[str, int]
    read_at: float

    @property
    def usage_kinds(self) -> tuple[str, ...]:
        """Return the usage kinds, each at the index that is its number."""
        return tuple(self.usage_numbers)


def check_ledger(connection: Connection[Any], settings: LedgerFacts) -> Ledger:
    """Return the ledger if this program and these settings are fit for it, else raise `UnusableSetup`."""
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
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


def check_version(version: str | None) -> None:
    """Raise unless the schema is the one that this program knows."""
    if version is None or version < SCHEMA_VERSION:
        raise SchemaBehind(version)
    if version > SCHEMA_VERSION:
        raise SchemaAhead(version)


def read_version(cursor: Cursor[Any]) -> str | None:
    """Return the last migration applied, or None for a database that never saw one."""
    found = cursor.execute(SQL["find_migrations"]).fetchone()
    if found is None or not found[0]:
        return None
    row = cursor.execute(SQL["read_version"]).fetchone()
    return row[0] if row else None


def read_ledger(cursor: Cursor[Any]) -> Ledger | None:
    """Return the ledger's facts, or None before `migrate` has recorded them."""
    row = cursor.execute(SQL["read_ledger"]).fetchone()
    if row is None:
        return None
    epoch, event_shards, expiry_grace_s, cursor_secret = row
    usage_numbers = dict(cursor.execute(SQL["read_usage_kinds"]).fetchall())
    return Ledger(epoch, bytes(cursor_secret), event_shards, expiry_grace_s, usage_numbers, monotonic())
