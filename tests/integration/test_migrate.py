from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
import redis

from feeds.schema import SCHEMA_VERSION, LedgerTooOld, SchemaAhead, SchemaBehind, SettingsDiffer, check_ledger
from worker.migrations import runner
from worker.migrations.runner import ChangedMigration, ForbiddenChange, list_migrations, migrate
from worker.settings import WorkerSettings

VERSIONS = [migration.version for migration in list_migrations()]


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def empty(empty_database_url):
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


def test_an_empty_database_becomes_a_ledger_with_its_facts(empty):
    settings = WorkerSettings(event_shards=3, usage_kinds=("b_usage", "a_usage"), expiry_grace_s=7)

    assert migrate(empty, settings) == VERSIONS

    ledger = check_ledger(empty, settings)
    assert (ledger.event_shards, ledger.expiry_grace_s, len(ledger.cursor_secret)) == (3, 7, 32)
    assert ledger.usage_numbers == {"b_usage": 0, "a_usage": 1}
    assert empty.execute("SELECT array_agg(shard ORDER BY shard) FROM stream_offsets").fetchall() == [([0, 1, 2],)]


def test_two_ledgers_have_different_secrets(empty, empty_database_url):
    secrets = set()
    for _ in range(2):
        empty.execute("DROP SCHEMA public CASCADE")
        empty.execute("CREATE SCHEMA public")
        migrate(empty, WorkerSettings())
        secrets.add(check_ledger(empty, WorkerSettings()).cursor_secret)

    assert len(secrets) == 2


def test_a_second_migration_changes_nothing(connection):
    before = check_ledger(connection, WorkerSettings())

    assert migrate(connection, WorkerSettings()) == []

    assert check_ledger(connection, WorkerSettings())._replace(read_at=before.read_at) == before


def test_a_ledger_from_before_movements_had_balances_is_refused_and_stays_as_it_is(empty):
    for table in ("movements (movement_id uuid)", "stream_offsets ()", "schema_migrations (version varchar(128))"):
        empty.execute(f"CREATE TABLE {table}")
    empty.execute("INSERT INTO schema_migrations VALUES ('0001'), ('0005')")

    for refused in (migrate, check_ledger):
        with pytest.raises(LedgerTooOld, match="create a new database"):
            refused(empty, WorkerSettings())
    assert empty.execute("SELECT count(*) FROM schema_migrations").fetchall() == [(2,)]


def test_a_migration_works_on_a_connection_without_autocommit(empty_database_url):
    with psycopg.connect(empty_database_url) as connection:
        migrate(connection, WorkerSettings())
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_of_four_migrations_at_once_one_applies_everything(empty_database_url):
    together = Barrier(4)

    def run(_):
        with psycopg.connect(empty_database_url) as connection:
            together.wait(timeout=10)
            return migrate(connection, WorkerSettings())

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(run, range(4)))

    assert sorted(outcomes) == [[], [], [], VERSIONS]
    with psycopg.connect(empty_database_url) as connection:
        check_ledger(connection, WorkerSettings())


def test_an_interrupted_migration_changes_nothing_and_can_be_repeated(empty, monkeypatch):
    interrupted = list_migrations()[-1]._replace(version="9999", up=b"SELECT pg_terminate_backend(pg_backend_pid())")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "list_migrations", lambda: [*list_migrations(), interrupted])
        with psycopg.connect(empty.info.dsn) as other, pytest.raises(psycopg.OperationalError):
            migrate(other, WorkerSettings())

    assert empty.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchall() == [(0,)]
    assert migrate(empty, WorkerSettings()) == VERSIONS


def test_a_migration_whose_file_changed_after_it_was_applied_is_refused(connection, monkeypatch):
    changed = [list_migrations()[0]._replace(checksum=bytes(32)), *list_migrations()[1:]]
    monkeypatch.setattr(runner, "list_migrations", lambda: changed)

    with pytest.raises(ChangedMigration, match="Migration 0001 was changed"):
        migrate(connection, WorkerSettings())


def test_migrations_that_dbmate_applied_are_accepted_and_get_checksums(empty):
    empty.execute("CREATE TABLE schema_migrations (version varchar(128) PRIMARY KEY)")
    for migration in list_migrations():
        empty.execute(migration.up)
        empty.execute("INSERT INTO schema_migrations (version) VALUES (%s)", [migration.version])

    assert migrate(empty, WorkerSettings()) == []

    stored = dict(empty.execute("SELECT version, checksum FROM schema_migrations").fetchall())
    assert stored == {migration.version: migration.checksum for migration in list_migrations()}


def test_every_migration_is_recorded_as_dbmate_records_it(connection):
    assert connection.execute("SELECT version FROM schema_migrations ORDER BY version").fetchall() == [
        (path.name.split("_")[0],) for path in sorted(Path(runner.__file__).parent.glob("*_*.sql"))
    ]


def test_new_kinds_get_the_next_numbers_and_old_kinds_retain_theirs(connection):
    migrate(connection, WorkerSettings(usage_kinds=("z_usage", "tm_usage", "ai_usage", "b_usage")))

    kinds = ("ai_usage", "tm_usage", "z_usage", "b_usage")
    assert check_ledger(connection, WorkerSettings(usage_kinds=kinds)).usage_kinds == kinds


def test_a_kind_cannot_be_removed(connection):
    with pytest.raises(ForbiddenChange, match=r"lacks tm_usage, .* set USAGE_KINDS=ai_usage,tm_usage,new_usage\."):
        migrate(connection, WorkerSettings(usage_kinds=("ai_usage", "new_usage")))


def test_facts_that_the_environment_does_not_name_do_not_change(empty):
    settings = WorkerSettings(event_shards=3, usage_kinds=("x_usage",), expiry_grace_s=60)
    migrate(empty, settings)

    migrate(empty, WorkerSettings())

    check_ledger(empty, settings)


def test_the_expiry_grace_can_change(connection):
    migrate(connection, WorkerSettings(expiry_grace_s=3600))

    assert check_ledger(connection, WorkerSettings(expiry_grace_s=3600)).expiry_grace_s == 3600


@pytest.mark.parametrize("shards", [4, 16])
def test_the_number_of_shards_can_change_while_the_streams_are_empty(connection, redis_url, shards):
    migrate(connection, WorkerSettings(event_shards=shards, redis_url=redis_url))

    assert check_ledger(connection, WorkerSettings(event_shards=shards)).event_shards == shards
    assert connection.execute("SELECT count(*), max(shard) FROM stream_offsets").fetchall() == [(shards, shards - 1)]


def test_the_number_of_shards_cannot_change_while_events_wait(connection, redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.xadd("events:{7}", {"event": "{}"})

    with pytest.raises(ForbiddenChange, match=r"from 8 to 4 .* 1 events wait: .* `usage-feeds drain`"):
        migrate(connection, WorkerSettings(event_shards=4, redis_url=redis_url))

    check_ledger(connection, WorkerSettings())


def test_the_number_of_shards_cannot_change_if_the_streams_cannot_be_checked(connection):
    with pytest.raises(ForbiddenChange, match="set REDIS_URL"):
        migrate(connection, WorkerSettings(event_shards=4))


def test_a_process_refuses_an_empty_database(empty):
    with pytest.raises(SchemaBehind, match=r"is empty, .* run `usage-feeds migrate`"):
        check_ledger(empty, WorkerSettings())


def test_a_process_refuses_a_schema_that_is_too_old(connection):
    connection.execute("UPDATE schema_migrations SET version = '0000' WHERE version = %s", [SCHEMA_VERSION])

    with pytest.raises(SchemaBehind, match=r"is at 0000, .* run `usage-feeds migrate`"):
        check_ledger(connection, WorkerSettings())


def test_a_schema_that_is_too_new_is_refused_and_not_migrated(connection):
    connection.execute("INSERT INTO schema_migrations (version) VALUES ('9999')")

    with pytest.raises(SchemaAhead, match="is at 9999"):
        check_ledger(connection, WorkerSettings())
    with pytest.raises(SchemaAhead):
        migrate(connection, WorkerSettings(expiry_grace_s=5))


@pytest.mark.parametrize(
    ("variable", "settings"),
    [
        ("EVENT_SHARDS is 9 here, but 8 in the ledger: set EVENT_SHARDS=8", {"event_shards": 9}),
        ("USAGE_KINDS is x_usage here, but ai_usage,tm_usage", {"usage_kinds": ("x_usage",)}),
        ("EXPIRY_GRACE_S is 1 here, but 0 in the ledger: set EXPIRY_GRACE_S=0", {"expiry_grace_s": 1}),
    ],
)
def test_a_process_whose_settings_differ_from_the_ledger_is_refused(connection, variable, settings):
    with pytest.raises(SettingsDiffer, match=variable):
        check_ledger(connection, WorkerSettings(**settings))


def test_the_order_of_kinds_in_the_environment_does_not_matter(connection):
    settings = WorkerSettings(usage_kinds=("tm_usage", "ai_usage"))

    assert check_ledger(connection, settings).usage_kinds == ("ai_usage", "tm_usage")
