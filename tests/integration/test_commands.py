import json
import os
import subprocess
import sys
from importlib import import_module

import click
import psycopg
import pytest
import redis
from click.testing import CliRunner

from tests.conftest import clear_settings
from tests.servers import CHECKOUT
from worker.commands import COMMANDS, cli


def run(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(cli, arguments, input=stdin, prog_name="usage-feeds")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*arguments, code=0, stdin=None):
    return json.loads(run(*arguments, "--json", code=code, stdin=stdin).stdout)


def every_command(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_of_the_contract_is_there_with_help_and_state():
    for path, command in every_command(cli):
        result = run(*path, "--help")
        assert "--state DIR" in result.output, path
        assert command.help, path


def test_help_of_the_whole_imports_no_command():
    code = (
        "import sys; from worker.commands import cli; cli(['--help'], standalone_mode=False);"
        "print(sorted({'psycopg', 'redis', 'celery', 'granian', 'pydantic'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)

    assert shown.stdout.splitlines()[-1] == "[]"
    assert all(purpose in shown.stdout for _, purpose in COMMANDS.values())


def test_every_command_says_in_the_overview_what_it_is_for():
    for name, (module, purpose) in COMMANDS.items():
        assert isinstance(getattr(import_module(module), name), click.Command)
        assert purpose.endswith(".")


def test_what_is_added_is_drained_and_shown(environment):
    first = run("grant", "org_a", "10", "--until", "2100-01-01T00:00:00Z").stdout.strip()
    run("grant", "org_a", "5", "--ref", "later", "--source", "promotion", "--from", "2100-01-01T00:00:00Z")
    second = run("usage", "org_a", "ai_usage", "12").stdout.strip()
    assert (first[:6], second[:6]) == ("grant_", "usage_")

    assert run_json("health")["waiting_events"] == 3
    assert run_json("drain") == {"posted": 3, "buried": 0}
    assert run_json("health")["waiting_events"] == 0

    items = run_json("feed", "org_a")["items"]
    assert [(item["kind"], item["credits"], item["usage_ref"]) for item in items] == [
        ("overflow", -2, second),
        ("consume", -10, second),
        ("allot", 10, first),
    ]
    balance = run_json("balance", "org_a")
    assert (balance["remaining"], balance["drawable"], balance["pending"], balance["movements"]) == (0, 0, 5, 3)
    assert [(grant["grant_ref"], grant["state"]) for grant in run_json("grants", "org_a")] == [
        ("later", "pending"),
        (first, "spent"),
    ]
    assert run_json("verify")["findings"] == []


def test_a_revoke_claws_back_what_remains(environment):
    run("grant", "org_a", "10", "--ref", "g")
    assert run("revoke", "org_a", "g", "--reason", "a mistake").stdout == "g\n"
    run("drain")

    [grant] = run_json("grants", "org_a")
    assert (grant["state"], grant["revoked"], grant["revoke_reason"]) == ("revoked", 10, "a mistake")


def test_a_feed_is_filtered_paged_and_the_same_as_the_endpoints(environment):
    for number in range(5):
        run("usage", "org_a", "tm_usage" if number % 2 else "ai_usage", "1", "--ref", f"u{number}")
    run("drain")

    document = run_json(
        "feed", "org_a", "--usage-kind", "ai_usage", "--kind", "overflow", "--limit", "2", "--page", "2"
    )
    assert [item["usage_ref"] for item in document["items"]] == ["u0"]
    assert (document["pages"]["total_items"], document["pages"]["has_next"]) == (3, False)
    assert run_json("feed", "org_a", "--kind", "allot", "--usage-kind", "ai_usage")["items"] == []
    assert "page 1 of 1, 5 items" in run("feed", "org_a").stdout
    assert "must be one of ai_usage, tm_usage" in run("feed", "org_a", "--usage-kind", "x", code=2).stderr


@pytest.mark.parametrize("command", ["feed", "balance", "grants", "verify"])
def test_an_organisation_that_nobody_knows_is_said_to_be_so(environment, command):
    result = run(command, "nobody", code=1)

    assert result.stderr.startswith("usage-feeds: No organisation nobody is known")


def test_an_event_that_would_be_refused_is_not_added(environment):
    result = run("usage", "org_a", "bad_usage", "12", code=2)

    assert result.stderr == "usage-feeds: invalid_event: usage_kind: must be one of ai_usage, tm_usage\n"
    assert run_json("health")["waiting_events"] == 0


LINES = b"""\
{"type":"grant","org_id":"org_a","grant_ref":"g","credits":10,"source":"plan"}

{"type":"usage","org_id":"org_a","usage_ref":"u","usage_kind":"ai_usage","credits":4}\r
nonsense
{"type":"usage","org_id":"org_a","usage_ref":"v","usage_kind":"ai_usage","credits":-1}
{"type":"usage","org_id":"org_a","usage_ref":"w","usage_kind":"ai_usage","credits":5%s}
{"type":"usage","org_id":"org_a","usage_ref":"x","usage_kind":"ai_usage","credits":6}""" % (b" " * 65536)


def test_send_sends_the_good_lines_and_names_the_bad_ones(environment):
    result = run("send", "-", code=1, stdin=LINES)

    assert result.stdout == "3 sent, 3 bad.\n"
    reasons = result.stderr.splitlines()
    assert [reason.split(": ")[:2] for reason in reasons] == [
        ["line 4", "undecodable"],
        ["line 5", "invalid_event"],
        ["line 6", "too_large"],
    ]
    assert run_json("drain") == {"posted": 3, "buried": 0}


def test_send_check_sends_nothing(environment, tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(LINES)

    assert run_json("send", str(file), "--check", code=1) == {"good": 3, "bad": 3, "sent": 0}
    assert run_json("health")["waiting_events"] == 0


def test_send_sends_more_lines_than_fit_a_chunk_in_order(environment):
    lines = "".join(
        json.dumps({"type": "usage", "org_id": "org_a", "usage_ref": f"u{n}", "usage_kind": "ai_usage", "credits": 1})
        + "\n"
        for n in range(2500)
    )

    assert run_json("send", "-", stdin=lines) == {"good": 2500, "bad": 0, "sent": 2500}
    run("drain")

    document = run_json("feed", "org_a", "--limit", "1")
    assert (document["pages"]["total_items"], document["items"][0]["usage_ref"]) == (2500, "u2499")


def bury(environment):
    run("revoke", "org_a", "g")
    run("revoke", "org_b", "g")
    run("usage", "org_a", "ai_usage", "3", "--ref", "u")
    run("usage", "org_a", "ai_usage", "4", "--ref", "u")
    assert run_json("drain") == {"posted": 1, "buried": 3}


def test_dead_letters_are_listed_narrowed_and_shown(environment):
    bury(environment)

    assert run_json("dead", "list")["total"] == 3
    unknown = run_json("dead", "list", "--code", "unknown_grant")["dead_letters"]
    assert {row["org_id"] for row in unknown} == {"org_a", "org_b"}
    [conflict] = run_json("dead", "list", "--org", "org_a", "--code", "conflict")["dead_letters"]
    shown = run_json("dead", "show", str(conflict["dead_letter_id"]))
    assert json.loads(shown["raw"])["credits"] == 4
    assert "3 of 3 dead letters" in run("dead", "list").stdout
    assert "conflict" in run("dead", "show", str(conflict["dead_letter_id"])).stdout


def test_a_replay_posts_what_can_be_posted_now_and_keeps_the_rest(environment):
    bury(environment)
    run("grant", "org_a", "10", "--ref", "g")
    run("drain")

    outcome = run_json("dead", "replay", "--all", code=1)

    assert (len(outcome["posted"]), sorted(row["code"] for row in outcome["refused"])) == (
        1,
        ["conflict", "unknown_grant"],
    )
    assert run_json("dead", "list")["total"] == 2
    assert run_json("grants", "org_a")[0]["revoked"] == 10
    assert run_json("verify")["findings"] == []


def test_a_replay_of_what_was_cut_short_is_refused(environment):
    event = json.dumps({"type": "usage", "org_id": "org_a", "usage_ref": "u", "usage_kind": "ai_usage", "credits": 1})
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO dead_letters (stream, entry_id, digest, raw, raw_bytes, code, message, added_at)"
            " VALUES ('events:{0}', '1-0', sha256('x'), %s, 70000, 'too_large', 'too large', now())",
            [event.ljust(65536).encode()],
        )

    [refused] = run_json("dead", "replay", "--all", code=1)["refused"]

    assert refused["code"] == "too_large"


def test_dead_letters_are_discarded_by_id_by_time_and_all(environment):
    bury(environment)
    ids = [str(row["dead_letter_id"]) for row in run_json("dead", "list")["dead_letters"]]

    assert run_json("dead", "discard", ids[0])["discarded"] == [int(ids[0])]
    assert "No dead letter" in run("dead", "discard", ids[0], code=1).stderr
    assert run_json("dead", "discard", "--before", "2020-01-01T00:00:00Z")["discarded"] == []
    assert len(run_json("dead", "discard", "--before", "2100-01-01T00:00:00Z")["discarded"]) == 2
    assert run("dead", "list").stdout == "No dead letters.\n"


@pytest.mark.parametrize(
    "arguments", [("discard",), ("discard", "--all", "1"), ("replay",), ("discard", "--before", "tomorrow")]
)
def test_dead_letters_must_be_named_one_way(environment, arguments):
    run("dead", *arguments, code=2)


def test_verify_ends_with_1_and_a_table_on_a_difference(environment):
    run("usage", "org_a", "ai_usage", "3")
    run("drain")
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute("UPDATE organisations SET grants = 7")

    assert run_json("verify", code=1)["findings"] == [
        {"org_id": "org_a", "rule": "grant_count", "place": "organisation", "expected": "0", "found": "7"}
    ]
    shown = run("verify", "org_a", code=1).stdout
    assert "grant_count" in shown
    assert "1 organisations, 1 movements, 7 grants: 1 differences." in shown


def test_health_ends_with_1_when_an_event_waits_too_long(environment):
    run("usage", "org_a", "ai_usage", "3")

    assert run_json("health", "--max-age", "0", code=1)["healthy"] is False
    assert run_json("health", "--max-age", "60")["healthy"] is True


def test_a_key_that_is_no_stream_is_unhealthy_and_reported_while_the_other_shards_go_on(environment):
    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.set("events:{3}", "x")
    run("usage", "org_a", "ai_usage", "3")

    assert run_json("drain") == {"posted": 1, "buried": 0}
    assert run_json("health", code=1)["broken_streams"] == 1
    assert [finding["rule"] for finding in run_json("verify", code=1)["findings"]] == ["stream_is_a_stream"]


def test_rebuild_starts_a_new_epoch(environment):
    assert run_json("rebuild")["epoch"] != run_json("rebuild")["epoch"]


def test_migrate_can_be_repeated(environment):
    assert run_json("migrate")["applied"] == []
    assert "nothing to do" in run("migrate").stdout


DEAD_POSTGRES = "postgresql://someone:geheim@127.0.0.1:1/ledger"
DEAD_REDIS = "redis://:geheim@127.0.0.1:1/0"
TROUBLES = [
    ({"DATABASE_URL": DEAD_POSTGRES}, ("verify",), "Postgres at 127.0.0.1:1/ledger: Connection refused: start"),
    ({"DATABASE_URL": "someone:geheim"}, ("verify",), "DATABASE_URL cannot be read"),
    ({"DATABASE_URL": ""}, ("migrate",), "No Postgres is known: start `usage-feeds up`, or set DATABASE_URL."),
    ({"REDIS_URL": DEAD_REDIS}, ("verify",), "Redis at 127.0.0.1:1: "),
    ({"REDIS_URL": DEAD_REDIS}, ("usage", "org_a", "ai_usage", "1"), "Redis at 127.0.0.1:1: "),
    ({"REDIS_URL": ""}, ("usage", "org_a", "ai_usage", "1"), "No Redis is known: start `usage-feeds up`"),
    ({"REDIS_URL": "geheim"}, ("drain",), "REDIS_URL cannot be read"),
    ({"EVENT_SHARDS": "0"}, ("verify",), "EVENT_SHARDS: Input should be greater than or equal to 1."),
    ({"EVENT_SHARDS": "4"}, ("drain",), "EVENT_SHARDS is 4 here, but 8 in the ledger"),
    ({"USAGE_KINDS": "UPPER"}, ("drain",), "USAGE_KINDS: String should match"),
]


@pytest.mark.parametrize(("changed", "arguments", "words"), TROUBLES)
def test_trouble_is_one_line_that_says_what_to_do_without_a_secret(environment, monkeypatch, changed, arguments, words):
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    clear_settings()

    result = run(*arguments, code=2)

    assert result.stderr.startswith(f"usage-feeds: {words}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert "geheim" not in result.output


def test_a_database_without_a_schema_is_to_be_migrated(environment, monkeypatch, empty_database_url):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    clear_settings()

    assert "run `usage-feeds migrate`" in run("verify", code=2).stderr
    assert "nothing to do" not in run("migrate").stdout
    run("verify")


def test_a_running_up_is_found_through_its_state_folder(environment, monkeypatch, tmp_path):
    state = tmp_path / "a state folder"
    state.mkdir()
    names = ("DATABASE_URL", "REDIS_URL")
    (state / "addresses.json").write_text(json.dumps({name.lower(): environment[name] for name in names}))
    for name in names:
        monkeypatch.delenv(name)
    command = [sys.executable, "-m", "worker", "dead", "list", "--state", str(state)]

    shown = subprocess.run(command, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False)

    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "No dead letters.\n", "")


def test_a_reader_who_leaves_early_ends_a_command_quietly(environment):
    run("usage", "org_a", "ai_usage", "1")
    run("drain")
    command = f"{sys.executable} -m worker feed org_a | true"

    shown = subprocess.run(command, shell=True, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, check=False)

    assert shown.stderr == b""


def test_a_piped_table_cuts_nothing_off(environment):
    ref = "r" * 128
    run("usage", "org_a", "ai_usage", "1", "--ref", ref)
    run("drain")

    assert any(line.rstrip().endswith(ref) for line in run("feed", "org_a").stdout.splitlines())
