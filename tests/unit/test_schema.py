from feeds.schema import SCHEMA_VERSION
from worker.migrations.runner import list_migrations, read_migration


def test_the_schema_version_is_the_version_of_the_last_migration():
    assert list_migrations()[-1].version == SCHEMA_VERSION


def test_migrations_are_numbered_without_gaps():
    assert [migration.version for migration in list_migrations()] == [
        f"{number:04}" for number in range(1, len(list_migrations()) + 1)
    ]


def test_sql_after_migrate_down_is_not_applied_and_line_ends_do_not_change_a_checksum(tmp_path):
    text = "-- migrate:up\nSELECT 1;\n-- migrate:down\nDROP TABLE movements;\n"
    (tmp_path / "0001_unix.sql").write_bytes(text.encode())
    (tmp_path / "0002_dos.sql").write_bytes(text.replace("\n", "\r\n").encode())

    unix, dos = list_migrations(tmp_path)

    assert unix.up.strip() == b"SELECT 1;"
    assert (unix.version, dos.version) == ("0001", "0002")
    assert unix.checksum == dos.checksum == read_migration(tmp_path / "0001_unix.sql").checksum
