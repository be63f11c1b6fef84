"""`GET /credits` tells what an organisation has, now and at an earlier moment."""

from datetime import UTC, datetime, timedelta

import pytest

from feeds.keys import create_key
from tests.integration.endpoint_requests import assert_refused, headers_of
from tests.integration.test_ledger import post_all

PATH = "/credits"
ORG = {"org_id": "org_new"}
GRANT = {"type": "grant", **ORG, "source": "plan"}
USAGE = {"type": "usage", **ORG, "usage_kind": "ai_usage"}


def moment(**ahead):
    """Return a time so far from now, as an event writes it."""
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


@pytest.fixture
def own(seeded):
    """Give the headers of a key of an organisation without movements."""
    seeded.execute("INSERT INTO organisations (org_id) VALUES ('org_new')")
    return headers_of(create_key(seeded, org_id="org_new")[1])


def balance(client, headers, **parameters):
    answer = client.get(PATH, headers=headers, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_organisation_without_movements_has_zeros(client, own):
    assert balance(client, own) == {
        "object": "credit_balance",
        "available_credits": 0,
        "by_source": {"plan": 0, "promotion": 0},
        "pending_credits": 0,
        "overflow_credits": 0,
        "next_expiry": None,
        "position": 0,
    }
    assert balance(client, own, at="2026-06-01T10:00:00Z") == {
        "object": "credit_balance",
        "available_credits": 0,
        "overflow_credits": 0,
        "position": 0,
    }


def test_available_is_what_can_be_drawn_now_by_source_with_the_next_expiry(client, own, seeded):
    soon, later = "2100-01-01T00:00:00Z", "2100-06-01T00:00:00Z"
    post_all(
        seeded,
        GRANT | {"grant_ref": "g1", "credits": 100, "expires_at": later},
        GRANT | {"grant_ref": "g2", "credits": 20, "expires_at": soon, "priority": 90},
        GRANT | {"grant_ref": "g3", "credits": 7, "source": "promotion", "expires_at": soon, "priority": 90},
        GRANT | {"grant_ref": "g4", "credits": 1000, "effective_at": soon},
        GRANT | {"grant_ref": "g5", "credits": 500, "expires_at": "2020-01-01T00:00:00Z"},
        GRANT | {"grant_ref": "g6", "credits": 40},
        {"type": "revoke", **ORG, "grant_ref": "g6"},
        USAGE | {"usage_ref": "u1", "credits": 30},
    )

    assert balance(client, own) == {
        "object": "credit_balance",
        "available_credits": 97,
        "by_source": {"plan": 90, "promotion": 7},
        "pending_credits": 1000,
        "overflow_credits": 0,
        "next_expiry": {"credits": 27, "expires_at": soon},
        "position": 8,
    }
    post_all(seeded, USAGE | {"usage_ref": "u2", "credits": 100}, USAGE | {"usage_ref": "u3", "credits": 5})
    found = balance(client, own)
    assert (found["available_credits"], found["overflow_credits"], found["next_expiry"]) == (0, 8, None)


def test_a_start_and_an_end_that_no_movement_shows_yet_count_at_once(client, own, seeded):
    post_all(
        seeded,
        GRANT | {"grant_ref": "starts", "credits": 5, "effective_at": moment(seconds=1)},
        GRANT | {"grant_ref": "ends", "credits": 3, "expires_at": moment(seconds=1)},
        grace_s=60,
    )
    before = balance(client, own)
    assert (before["available_credits"], before["pending_credits"]) == (3, 5)
    seeded.execute("SELECT pg_sleep(1.2)")

    after = balance(client, own)
    assert (after["available_credits"], after["pending_credits"], after["next_expiry"]) == (5, 0, None)
    assert after["position"] == before["position"] == 1


def test_the_balance_at_every_moment_is_that_of_the_last_movement_up_to_it(client, own, seeded):
    for number in range(1, 12):
        credits_given = {"credits": number}
        event = USAGE | {"usage_ref": f"u{number}"} if number % 3 else GRANT | {"grant_ref": f"g{number}"}
        kind = {"usage_kind": "tm_usage"} if number % 2 and number % 3 else {}
        post_all(seeded, event | credits_given | kind)
    lines = seeded.execute(
        "SELECT created_at, kind::text, credits FROM movements JOIN organisations USING (org_no)"
        " WHERE org_id = 'org_new' ORDER BY position"
    ).fetchall()
    moments = [(lines[0][0] - timedelta(days=1))] + [
        line[0] + timedelta(microseconds=n) for line in lines for n in (-1, 0, 1)
    ]
    for instant in moments:
        before = [line for line in lines if line[0] <= instant]
        assert balance(client, own, at=instant.isoformat()) == {
            "object": "credit_balance",
            "available_credits": sum(moved for _, kind, moved in before if kind != "o"),
            "overflow_credits": -sum(moved for _, kind, moved in before if kind == "o"),
            "position": len(before),
        }


@pytest.mark.parametrize("at", ["yesterday", "2026-06-01", "2026-06-01T10:00:00", "2999-01-01T00:00:00Z", "1e9"])
def test_a_time_that_is_unusable_or_has_not_come_is_refused(client, own, at):
    assert_refused(client.get(PATH, headers=own, params={"at": at}), 400, "credit.balance.invalid_filter")


def test_everything_that_paths_share_holds_here_too(client, own, seeded):
    answer = client.get(PATH, headers=own)
    assert answer.headers["cache-control"] == "private, no-cache"
    again = client.get(PATH, headers=own | {"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    head = client.head(PATH, headers=own)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(answer.content)))
    time = "2026-06-01T10:00:00Z"
    refused = [
        ({}, {}, 401, "credit.handler.identity_missing"),
        (own | {"X-Org-ID": "org_a"}, {}, 403, "authorize.forbidden"),
        (own, {"at": [time, time]}, 400, "credit.balance.invalid_filter"),
        (own, {"page": "2"}, 400, "credit.balance.invalid_parameter"),
    ]
    for headers, parameters, status, code in refused:
        assert_refused(client.get(PATH, headers=headers, params=parameters), status, code)
    assert_refused(client.post(PATH, headers=own), 405, "method_not_allowed")
    assert client.get(PATH + "/", headers=own).status_code == 404
    assert client.get(PATH, headers=own, params={"at": ""}).content == answer.content

    limited = headers_of(create_key(seeded, org_id="org_new", rate=1)[1])
    statuses = [client.get(PATH, headers=limited).status_code for _ in range(4)]
    assert statuses[0] == 200
    assert 429 in statuses
