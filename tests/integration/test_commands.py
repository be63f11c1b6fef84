import json
import os
import shlex
import subprocess
import sys
from importlib import import_module

import click
import psycopg
import pytest
import redis

from tests.integration.command_line import run, run_json
from tests.servers import CHECKOUT
from worker.commands import COMMANDS, cli, function_of


def every_command(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_has_help_and_the_state_option():
    for path, command in every_command(cli):
        result = run(*path, "--help")
        assert "--state DIR" in result.output, path
        assert command.help, path


def test_the_overview_of_commands_imports_no_driver():
    code = (
        "import sys; from worker.commands import cli; cli(['--help'], standalone_mode=False);"
        "print(sorted({'psycopg', 'redis', 'celery', 'granian', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    assert all(purpose in done.stdout for _, purpose in COMMANDS.values())


def test_every_command_in_the_overview_exists_and_has_a_sentence_about_it():
    for name, (module, purpose) in COMMANDS.items():
        assert isinstance(getattr(import_module(module), function_of(name)), click.Command)
        assert purpose.endswith(".")


def test_labels_of_the_command_line_reach_the_movements_of_the_usage_and_of_the_grant(environment, database_url):
    run("grant", "org_a", "10", "--label", "order=A = 7", "--until", "2100-01-01T00:00:00Z")
    run("usage", "org_a", "ai_usage", "12", "--label", "user=Zoë", "--label", "empty=")
    for wrong in ("user", "user=a --label user=b"):
        assert "Error" in run("usage", "org_a", "ai_usage", "1", *f"--label {wrong}".split(), code=2).stderr
    run("drain")

    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT position, labels FROM movement_labels ORDER BY position").fetchall()
    assert found == [(1, '{"order":"A = 7"}'), *((n, '{"user":"Zoë","empty":""}') for n in (2, 3))]
    assert run_json("verify")["findings"] == []


def test_added_events_are_drained_and_printed(environment):
    first = run("grant", "org_a", "10", "--until", "2100-01-01T00:00:00Z").stdout.strip()
    run("grant", "org_a", "5", "--ref", "later", "--source", "promotion", "--from", "2100-01-01T00:00:00Z")
    second = run("usage", "org_a", "ai_usage", "12").stdout.strip()
    assert (first[:6], second[:6]) == ("grant_", "usage_")

    assert run_json("health", code=1)["waiting_events"] == 3
    assert run_json("drain") == {"posted": 3, "buried": 0}
    assert run_json("health", code=1)["waiting_events"] == 0

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


def test_a_balance_of_any_size_is_printed(environment):
    run("grant", "org_a", "1", "--ref", "g")
    run("drain")
    huge = 2**62
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO grants (org_no, grant_no, grant_ref, credits, source, priority, remaining, allot_position, open)"
            " SELECT org_no, n, n, %s, 'plan', 50, %s, 1, true FROM organisations, generate_series(2, 4) AS n",
            [huge, huge],
        )

    assert run_json("balance", "org_a")["remaining"] == 3 * huge + 1
    assert f"{3 * huge + 1:,}" in run("balance", "org_a").stdout


def test_a_revoke_takes_back_what_remains(environment):
    run("grant", "org_a", "10", "--ref", "g")
    assert run("revoke", "org_a", "g", "--reason", "a mistake").stdout == "g\n"
    run("drain")

    [grant] = run_json("grants", "org_a")
    assert (grant["state"], grant["revoked"], grant["revoke_reason"]) == ("revoked", 10, "a mistake")


def test_a_feed_is_filtered_and_paged_in_the_form_of_the_endpoint(environment):
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
def test_a_command_about_an_unknown_organisation_says_so(environment, command):
    result = run(command, "org_unknown", code=1)

    message = "Unknown organisation org_unknown. It exists once it has an event, a key or a member."
    assert result.stderr == f"usage-feeds: {message}\n"


def test_an_invalid_event_is_not_added(environment):
    result = run("usage", "org_a", "bad_usage", "12", code=2)

    assert result.stderr == "usage-feeds: invalid_event: usage_kind: must be one of ai_usage, tm_usage\n"
    assert run_json("health", code=1)["waiting_events"] == 0


LINES = b"""\
{"type":"grant","org_id":"org_a","grant_ref":"g","credits":10,"source":"plan"}

{"type":"usage","org_id":"org_a","usage_ref":"u","usage_kind":"ai_usage","credits":4}\r
nonsense
{"type":"usage","org_id":"org_a","usage_ref":"v","usage_kind":"ai_usage","credits":-1}
{"type":"usage","org_id":"org_a","usage_ref":"w","usage_kind":"ai_usage","credits":5%s}
{"type":"usage","org_id":"org_a","usage_ref":"x","usage_kind":"ai_usage","credits":6}""" % (b" " * 65536)


def test_send_sends_the_good_lines_and_reports_the_bad_ones_with_their_numbers(environment):
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
    assert run_json("health", code=1)["waiting_events"] == 0


def test_send_sends_several_chunks_of_lines_in_order(environment):
    lines = "".join(
        json.dumps({"type": "usage", "org_id": "org_a", "usage_ref": f"u{n}", "usage_kind": "ai_usage", "credits": 1})
        + "\n"
        for n in range(2500)
    )

    assert run_json("send", "-", stdin=lines) == {"good": 2500, "bad": 0, "sent": 2500}
    run("drain")

    document = run_json("feed", "org_a", "--limit", "1")
    assert (document["pages"]["total_items"], document["items"][0]["usage_ref"]) == (2500, "u2499")


def test_verify_prints_differences_as_a_table_and_exits_with_1(environment):
    run("usage", "org_a", "ai_usage", "3")
    run("drain")
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute("UPDATE organisations SET grants = 7")

    assert run_json("verify", code=1)["findings"] == [
        {"org_id": "org_a", "rule": "grant_count", "place": "organisation", "expected": "0", "found": "7"}
    ]
    printed = run("verify", "org_a", code=1).stdout
    assert "grant_count" in printed
    assert "1 organisation, 1 movement, 7 grants, 0 cached feeds: 1 difference." in printed


def test_a_shards_key_that_is_no_stream_is_reported_and_the_other_shards_are_drained(environment):
    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.set("events:{3}", "x")
    run("usage", "org_a", "ai_usage", "3")

    assert run_json("drain") == {"posted": 1, "buried": 0}
    assert run_json("health", code=1)["broken_streams"] == 1
    assert [finding["rule"] for finding in run_json("verify", code=1)["findings"]] == ["stream_is_a_stream"]


def test_migrate_can_be_repeated(environment):
    assert run_json("migrate")["applied"] == []
    assert "nothing to do" in run("migrate").stdout


def test_a_command_finds_a_running_up_through_its_state_folder(environment, monkeypatch, tmp_path):
    state = tmp_path / "a state folder"
    state.mkdir()
    names = ("DATABASE_URL", "REDIS_URL")
    (state / "addresses.json").write_text(json.dumps({name.lower(): environment[name] for name in names}))
    for name in names:
        monkeypatch.delenv(name)
    command = [sys.executable, "-m", "worker", "dead", "list", "--state", str(state)]

    done = subprocess.run(command, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "No dead letters.\n", "")


def test_a_command_whose_output_pipe_is_closed_prints_no_error(environment):
    run("usage", "org_a", "ai_usage", "1")
    run("drain")
    command = f"{shlex.quote(sys.executable)} -m worker feed org_a | true"

    done = subprocess.run(command, shell=True, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, check=False)

    assert done.stderr == b""


def test_a_piped_table_cuts_no_cell_off(environment):
    ref = "r" * 128
    run("usage", "org_a", "ai_usage", "1", "--ref", ref)
    run("drain")

    assert any(line.rstrip().endswith(ref) for line in run("feed", "org_a").stdout.splitlines())
