"""How are the schema and the ledger's facts brought up to date?"""

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import Connection, Cursor
from psycopg.errors import DuplicateFunction, DuplicateObject, DuplicateTable
from psycopg.rows import tuple_row

from feeds.database import begin
from feeds.queries import load_queries
from feeds.schema import Ledger, SchemaAhead, UnusableSetup, check_surroundings, read_ledger, read_version
from worker.intake.backlog import read_backlogs
from worker.intake.streams import connect
from worker.settings import WorkerSettings

SQL = load_queries(__file__)

POSTGRES_MINIMUM = 15


class OldPostgres(UnusableSetup):
    """The Postgres server is too old. Use a newer one."""


class ChangedMigration(UnusableSetup):
    """A migration's file was changed after it was applied. Restore it, and put the change into a new migration."""


class TakenSchema(UnusableSetup):
    """The schema holds tables of another program, or there is no schema at all. Give usage-feeds one of its own."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}: give usage-feeds a database of its own,"
            " or create a schema and name it first in the search_path of its roles."
        )


class ForbiddenChange(UnusableSetup):
    """A fact of the ledger cannot change to what the environment says. The message says what must be done first."""


class Migration(NamedTuple):
    """One step of the schema; `up` is its SQL."""

    version: str
    checksum: bytes
    up: bytes


def migrate(connection: Connection[Any], settings: WorkerSettings) -> list[str]:
    """Bring the schema and the ledger's facts up to date in one transaction; return the versions that were applied.

    It is safe to repeat, to run twice at once and to interrupt. A fact that the environment does not name does not
    change. Raises `UnusableSetup`.
    """
    if connection.info.server_version < POSTGRES_MINIMUM * 10000:
        raise OldPostgres(
            f"DATABASE_URL leads to a server older than PostgreSQL {POSTGRES_MINIMUM}: use a newer server."
        )
    with begin(connection), connection.cursor(row_factory=tuple_row) as cursor:
        check_surroundings(cursor)
        lock_schema(cursor)
        choose_schema(cursor)
        read_version(cursor)
        try:
            applied = apply_migrations(cursor, list_migrations())
        except (DuplicateTable, DuplicateFunction, DuplicateObject) as error:
            raise TakenSchema(f"The schema holds something else of that name: {error.diag.message_primary}") from error
        record_facts(cursor, settings)
    return applied


def lock_schema(cursor: Cursor[Any]) -> None:
    """Take the lock that allows one migration of this database at a time; hold it until the transaction ends."""
    cursor.execute(SQL["lock_schema"])


def choose_schema(cursor: Cursor[Any]) -> None:
    """Work in the schema that holds the ledger, or else in the first one of the search path. Raises `TakenSchema`."""
    schema, has_other_migrations = cursor.execute(SQL["find_schema"]).fetchall()[0]
    if schema is None:
        raise TakenSchema("The search_path of this role names no schema that exists")
    cursor.execute(SQL["use_schema"], {"schema": schema})
    if has_other_migrations and cursor.execute(SQL["read_any_migration"]).fetchone():
        raise TakenSchema(f"The schema {schema} belongs to another program: it has a table schema_migrations")


def list_migrations(folder: Path = Path(__file__).parent) -> list[Migration]:
    """Return the migrations in dbmate's format, in order."""
    return [read_migration(path) for path in sorted(folder.glob("[0-9]*_*.sql"))]


def read_migration(path: Path) -> Migration:
    """Return the migration in a file. The checksum does not depend on the file's line ends."""
    text = path.read_text(encoding="utf-8")
    up = re.split(r"^-- migrate:down\b", text.split("-- migrate:up", 1)[1], flags=re.MULTILINE)[0]
    return Migration(path.name.split("_")[0], hashlib.sha256(text.encode()).digest(), up.encode())


def apply_migrations(cursor: Cursor[Any], migrations: list[Migration]) -> list[str]:
    """Apply the missing migrations and return their versions."""
    cursor.execute(SQL["create_schema_migrations"])
    checksums = dict(cursor.execute(SQL["read_applied"]).fetchall())
    if checksums and max(checksums) > migrations[-1].version:
        raise SchemaAhead(max(checksums))
    missing = [migration for migration in migrations if migration.version not in checksums]
    for migration in migrations:
        applied = checksums.get(migration.version)
        if applied is not None and bytes(applied) != migration.checksum:
            raise ChangedMigration(
                f"Migration {migration.version} was changed after it was applied to this database:"
                " restore its file, and put the change into a new migration."
            )
        if migration in missing:
            cursor.execute(migration.up)
        if applied is None:
            cursor.execute(SQL["insert_applied"], {"version": migration.version, "checksum": migration.checksum})
    return [migration.version for migration in missing]


def record_facts(cursor: Cursor[Any], settings: WorkerSettings) -> None:
    """Record the facts of a new ledger, or change those facts that the environment names."""
    ledger = read_ledger(cursor)
    if ledger is None:
        facts = {"event_shards": settings.event_shards, "expiry_grace_s": settings.expiry_grace_s}
        cursor.execute(SQL["insert_ledger"], facts | {"cursor_secret": secrets.token_bytes(32)})
        add_usage_kinds(cursor, settings.usage_kinds, first_number=0)
        cursor.execute(SQL["insert_offsets"], facts)
        return
    named = settings.model_fields_set
    if "usage_kinds" in named:
        change_usage_kinds(cursor, ledger, settings.usage_kinds)
    facts = {
        "event_shards": settings.event_shards if "event_shards" in named else ledger.event_shards,
        # May always change: every grant still expires once, at the first settling that finds it due.
        "expiry_grace_s": settings.expiry_grace_s if "expiry_grace_s" in named else ledger.expiry_grace_s,
    }
    if facts["event_shards"] != ledger.event_shards:
        cursor.execute(SQL["lock_offsets"])
        require_empty_streams(settings.redis_url, ledger.event_shards, facts["event_shards"])
        cursor.execute(SQL["delete_offsets"], facts)
    cursor.execute(SQL["insert_offsets"], facts)
    if (facts["event_shards"], facts["expiry_grace_s"]) != (ledger.event_shards, ledger.expiry_grace_s):
        cursor.execute(SQL["update_ledger"], facts)


def change_usage_kinds(cursor: Cursor[Any], ledger: Ledger, usage_kinds: tuple[str, ...]) -> None:
    """Number the new kinds. No kind may be removed, because movements hold the numbers for ever."""
    removed = [kind for kind in ledger.usage_numbers if kind not in usage_kinds]
    if removed:
        raise ForbiddenChange(
            f"USAGE_KINDS lacks {','.join(removed)}, but kinds can only be added:"
            f" set USAGE_KINDS={','.join((*ledger.usage_numbers, *new_kinds(ledger, usage_kinds)))}."
        )
    add_usage_kinds(cursor, new_kinds(ledger, usage_kinds), first_number=len(ledger.usage_numbers))


def new_kinds(ledger: Ledger, usage_kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kinds that the ledger does not have yet."""
    return tuple(kind for kind in usage_kinds if kind not in ledger.usage_numbers)


def add_usage_kinds(cursor: Cursor[Any], usage_kinds: tuple[str, ...], first_number: int) -> None:
    """Give each kind a number, which never changes."""
    cursor.execute(SQL["insert_usage_kinds"], {"usage_kinds": list(usage_kinds), "first_number": first_number})


def require_empty_streams(redis_url: str, before: int, after: int) -> None:
    """Raise ForbiddenChange if events wait in any shard: with another number of shards their order would be lost.

    Args:
        redis_url: The Redis that holds the streams.
        before: The number of shards that the ledger has.
        after: The number of shards that the environment names.
    """
    change = f"EVENT_SHARDS can change from {before} to {after} only while the streams are empty"
    if not redis_url:
        raise ForbiddenChange(f"{change}: set REDIS_URL, so that this can be checked.")
    with connect(redis_url) as redis:
        waiting = sum(backlog.length for backlog in read_backlogs(redis, range(max(before, after))))
    if waiting:
        raise ForbiddenChange(
            f"{change}, but {waiting} events wait: stop the producers, run `usage-feeds drain`, then migrate again."
        )
