import psycopg
import pytest

from tests.conftest import clear_settings
from tests.integration.command_line import run
from worker.audit import ledger as audit

DEAD_POSTGRES = "postgresql://someone:geheim@127.0.0.1:1/ledger"
DEAD_REDIS = "redis://:geheim@127.0.0.1:1/0"
ERRORS = [
    ({"DATABASE_URL": DEAD_POSTGRES}, ("verify",), "Postgres at 127.0.0.1:1/ledger: Connection refused: start"),
    (
        {"DATABASE_URL": "someone:geheim"},
        ("verify",),
        "DATABASE_URL is not a valid address: set one like postgresql://",
    ),
    ({"DATABASE_URL": ""}, ("migrate",), "No address of Postgres is set: start `usage-feeds up`, or set DATABASE_URL."),
    ({"READER_DATABASE_URL": DEAD_POSTGRES}, ("serve",), "Postgres at 127.0.0.1:1/ledger: Connection refused: start"),
    ({"REDIS_URL": DEAD_REDIS}, ("verify",), "Redis at 127.0.0.1:1: "),
    ({"REDIS_URL": DEAD_REDIS}, ("usage", "org_a", "ai_usage", "1"), "Redis at 127.0.0.1:1: "),
    ({"REDIS_URL": ""}, ("usage", "org_a", "ai_usage", "1"), "No address of Redis is set: start `usage-feeds up`"),
    ({"REDIS_URL": "geheim"}, ("drain",), "REDIS_URL is not a valid address: set one like redis://"),
    ({"EVENT_SHARDS": "0"}, ("verify",), "EVENT_SHARDS: Input should be greater than or equal to 1."),
    ({"EVENT_SHARDS": "4"}, ("drain",), "EVENT_SHARDS is 4 here, but 8 in the ledger"),
    ({"USAGE_KINDS": "UPPER"}, ("drain",), "USAGE_KINDS: String should match"),
]


@pytest.mark.parametrize(("changed", "arguments", "words"), ERRORS)
def test_an_error_is_one_line_that_says_what_to_do_and_holds_no_secret(
    environment, monkeypatch, changed, arguments, words
):
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    clear_settings()

    result = run(*arguments, code=2)

    assert result.stderr.startswith(f"usage-feeds: {words}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "geheim" not in result.output


def test_a_command_on_a_database_without_a_schema_says_to_migrate_it(environment, monkeypatch, empty_database_url):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    clear_settings()

    assert "run `usage-feeds migrate`" in run("verify", code=2).stderr
    assert "nothing to do" not in run("migrate").stdout
    run("verify")


@pytest.mark.parametrize("variable", ["DATABASE_URL", "READER_DATABASE_URL"])
@pytest.mark.parametrize("url", [DEAD_POSTGRES, "someone:geheim"])
def test_serve_names_the_variable_that_its_address_comes_from(environment, monkeypatch, variable, url):
    monkeypatch.setenv(variable, url)
    clear_settings()

    message = run("serve", code=2).stderr

    assert [word for word in message.replace(".", " ").split() if word.endswith("DATABASE_URL")] == [variable]
    assert "geheim" not in message


def test_a_command_without_its_libraries_says_what_to_install(monkeypatch):
    def import_without_psycopg(name):
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr("worker.commands.import_module", import_without_psycopg)
    result = run("health", code=2)
    assert result.stderr == "usage-feeds: psycopg is not installed: pip install 'usage-feeds[server,local]'.\n"


def test_verify_starts_again_without_parallel_queries_where_postgres_has_no_room_for_them(environment, monkeypatch):
    run("grant", "org_a", "5")
    run("drain")
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION need_room() RETURNS TABLE (a int, b text, c text, d text, e text) LANGUAGE plpgsql AS $$"
            " BEGIN IF current_setting('max_parallel_workers_per_gather') <> '0' THEN"
            " RAISE EXCEPTION 'could not resize shared memory segment' USING ERRCODE = 'disk_full'; END IF; END $$"
        )
    monkeypatch.setitem(audit.SQL, "find_wrong_draws", b"SELECT * FROM need_room()")

    result = run("verify")
    assert "1 organisation, 1 movement, 1 grant" in result.stdout
    assert result.stderr.startswith("usage-feeds: Postgres has no room for a parallel query, so verify starts again")
