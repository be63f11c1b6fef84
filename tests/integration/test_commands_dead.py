import json

import psycopg
import pytest

from tests.integration.command_line import run, run_json


def bury_three_events(environment):
    run("revoke", "org_a", "g")
    run("revoke", "org_b", "g")
    run("usage", "org_a", "ai_usage", "3", "--ref", "u")
    run("usage", "org_a", "ai_usage", "4", "--ref", "u")
    assert run_json("drain") == {"posted": 1, "buried": 3}


def test_dead_letters_are_listed_filtered_and_printed(environment):
    bury_three_events(environment)

    assert run_json("dead", "list")["total"] == 3
    unknown = run_json("dead", "list", "--code", "unknown_grant")["dead_letters"]
    assert {row["org_id"] for row in unknown} == {"org_a", "org_b"}
    [conflict] = run_json("dead", "list", "--org", "org_a", "--code", "conflict")["dead_letters"]
    printed = run_json("dead", "show", str(conflict["dead_letter_id"]))
    assert json.loads(printed["raw"])["credits"] == 4
    assert "3 of 3 dead letters" in run("dead", "list").stdout
    assert "conflict" in run("dead", "show", str(conflict["dead_letter_id"])).stdout


def test_a_replay_posts_what_can_be_posted_now_and_leaves_the_rest_dead(environment):
    bury_three_events(environment)
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


def test_a_replay_of_a_truncated_event_is_refused(environment):
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
    bury_three_events(environment)
    ids = [str(row["dead_letter_id"]) for row in run_json("dead", "list")["dead_letters"]]

    assert run_json("dead", "discard", ids[0])["discarded"] == [int(ids[0])]
    assert "No dead letter" in run("dead", "discard", ids[0], code=1).stderr
    assert run_json("dead", "discard", "--before", "2020-01-01T00:00:00Z")["discarded"] == []
    assert len(run_json("dead", "discard", "--before", "2100-01-01T00:00:00Z")["discarded"]) == 2
    assert run("dead", "list").stdout == "No dead letters.\n"


@pytest.mark.parametrize(
    "arguments", [("discard",), ("discard", "--all", "1"), ("replay",), ("discard", "--before", "tomorrow")]
)
def test_dead_letters_must_be_selected_in_exactly_one_way(environment, arguments):
    run("dead", *arguments, code=2)
