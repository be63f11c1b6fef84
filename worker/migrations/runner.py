"""How does a database come to the schema, and the ledger to its facts?"""

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from feeds.queries import load_queries
from feeds.schema import Ledger, SchemaAhead, UnusableSetup, read_ledger
from worker.intake.streams import connect, stream_of
from worker.settings import WorkerSettings

SQL = load_queries(__file__)

POSTGRES_MINIMUM = 15


class OldPostgres(UnusableSetup):
    """The server is too old. Use a newer one."""


class ChangedMigration(UnusableSetup):
    """A file was changed after it was applied. Restore it, and write a new one for the change."""


class ForbiddenChange(UnusableSetup):
    """A fact of the ledger cannot become what the environment says. The message says what must be first."""


class Migration(NamedTuple):
    """One step of the schema. `up` is its SQL."""

    version: str
    checksum: bytes
    up: bytes


def migrate(connection: Connection[Any], settings: WorkerSettings) -> list[str]:
    """Bring the schema and the ledger's facts up to date, all or nothing; return the versions applied.

    Safe to repeat, to run twice at once and to interrupt. A fact that the environment does not
    name stays as the ledger has it. Raises `UnusableSetup`.
    """
    if connection.info.server_version < POSTGRES_MINIMUM * 10000:
        raise OldPostgres(f"PostgreSQL {POSTGRES_MINIMUM} or newer is needed, DATABASE_URL leads to an older one.")
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        lock_schema(cursor)
        applied = apply_migrations(cursor, list_migrations())
        record_facts(cursor, settings)
    return applied


def lock_schema(cursor: Cursor[Any]) -> None:
    """Wait for whoever else migrates this database, and keep others out until the transaction's end."""
    cursor.execute(SQL["lock_schema"])


def list_migrations(folder: Path = Path(__file__).parent) -> list[Migration]:
    """Return the migrations in dbmate's format, in order."""
    return [read_migration(path) for path in sorted(folder.glob("[0-9]*_*.sql"))]


def read_migration(path: Path) -> Migration:
    """Return what one file says. The checksum is over the text, whatever its line ends."""
    text = path.read_text(encoding="utf-8")
    up = re.split(r"^-- migrate:down\b", text.split("-- migrate:up", 1)[1], flags=re.MULTILINE)[0]
    return Migration(path.name.split("_")[0], hashlib.sha256(text.encode()).digest(), up.encode())


def apply_migrations(cursor: Cursor[Any], migrations: list[Migration]) -> list[str]:
    """Apply what is missing and return its versions."""
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
    """Write a new ledger's facts, or change those of a ledger that the environment names and that may change."""
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
        # Free to change: every grant still lapses once, at the next settling that finds it due.
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
    """Number the kinds that are new. None may be missing: lines bear their numbers for ever."""
    removed = [kind for kind in ledger.usage_numbers if kind not in usage_kinds]
    if removed:
        raise ForbiddenChange(
            f"USAGE_KINDS lacks {','.join(removed)}, and kinds may only be added:"
            f" set USAGE_KINDS={','.join((*ledger.usage_numbers, *added_kinds(ledger, usage_kinds)))}."
        )
    add_usage_kinds(cursor, added_kinds(ledger, usage_kinds), first_number=len(ledger.usage_numbers))


def added_kinds(ledger: Ledger, usage_kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kinds that the ledger does not know."""
    return tuple(kind for kind in usage_kinds if kind not in ledger.usage_numbers)


def add_usage_kinds(cursor: Cursor[Any], usage_kinds: tuple[str, ...], first_number: int) -> None:
    """Give each kind its number, for ever."""
    cursor.execute(SQL["insert_usage_kinds"], {"usage_kinds": list(usage_kinds), "first_number": first_number})


def require_empty_streams(redis_url: str, *event_shards: int) -> None:
    """Raise if events wait in any shard: with another number of shards their order would be lost."""
    change = f"EVENT_SHARDS can change from {event_shards[0]} to {event_shards[1]} only while the streams are empty"
    if not redis_url:
        raise ForbiddenChange(f"{change}: set REDIS_URL, so that this can be seen.")
    with connect(redis_url) as redis:
        pipeline = redis.pipeline(transaction=False)
        for shard in range(max(event_shards)):
            pipeline.xlen(stream_of(shard))
        waiting = sum(pipeline.execute())
    if waiting:
        raise ForbiddenChange(
            f"{change}, and {waiting} events wait: stop the producers, run `usage-feeds drain`, repeat."
        )
