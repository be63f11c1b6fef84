"""`GET /credits/grants` lists an organisation's grants, newest first, with the same pages and cursors as the feed."""

import time

import pytest

from feeds.keys import create_key
from tests.integration.endpoint_requests import assert_refused, headers_of
from tests.integration.test_balance import moment
from tests.integration.test_ledger import post_all

PATH = "/credits/grants"
ORG = {"org_id": "org_new"}
GRANT = {"type": "grant", **ORG, "source": "plan", "credits": 10}
FAR = "2100-01-01T00:00:00Z"


@pytest.fixture
def own(seeded):
    """Give the headers of a key of an organisation with grants in every state."""
    post_all(
        seeded,
        GRANT | {"grant_ref": "spent"},
        {"type": "usage", **ORG, "usage_ref": "u", "usage_kind": "ai_usage", "credits": 10},
        GRANT | {"grant_ref": "active", "source": "promotion", "priority": 7, "expires_at": FAR, "labels": {"a": "é"}},
        {"type": "usage", **ORG, "usage_ref": "v", "usage_kind": "ai_usage", "credits": 4},
        GRANT | {"grant_ref": "pending", "effective_at": FAR},
        GRANT | {"grant_ref": "expired", "expires_at": "2020-01-01T00:00:00Z"},
        GRANT | {"grant_ref": "revoked"},
        {"type": "revoke", **ORG, "grant_ref": "revoked"},
        GRANT | {"grant_ref": "never", "effective_at": FAR},
        {"type": "revoke", **ORG, "grant_ref": "never"},
        {"type": "settle", **ORG},
    )
    return headers_of(create_key(seeded, org_id="org_new")[1])


def page(client, headers, **parameters):
    answer = client.get(PATH, headers=headers, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refs(document):
    return [item["grant_ref"] for item in document["items"]]


def test_each_grant_adds_up_and_has_a_state(client, own):
    found = page(client, own)

    assert [(item["grant_ref"], item["state"]) for item in found["items"]] == [
        ("never", "revoked"), ("revoked", "revoked"), ("expired", "expired"), ("pending", "pending"),
        ("active", "active"), ("spent", "spent"),
    ]  # fmt: skip
    for item in found["items"]:
        assert item["credits"] == item["drawn"] + item["expired"] + item["revoked"] + item["remaining"] == 10
    assert found["items"][4] == {
        "object": "credit_grant", "grant_ref": "active", "source": "promotion", "priority": 7, "credits": 10,
        "drawn": 4, "expired": 0, "revoked": 0, "remaining": 6, "state": "active", "effective_at": None,
        "expires_at": FAR, "labels": {"a": "é"},
    }  # fmt: skip
    assert refs(page(client, own, state="open")) == ["pending", "active"]


def test_a_start_and_an_end_that_no_movement_shows_yet_change_the_state_at_once(client, own, seeded):
    post_all(
        seeded,
        GRANT | {"grant_ref": "starts", "effective_at": moment(seconds=0.5)},
        GRANT | {"grant_ref": "ends", "expires_at": moment(seconds=0.5)},
        grace_s=60,
    )
    time.sleep(0.7)
    items = page(client, own, limit=2)["items"]
    assert [(item["state"], item["remaining"]) for item in items] == [("expired", 10), ("active", 10)]
    assert refs(page(client, own, state="open"))[0] == "starts"


@pytest.mark.parametrize("state", ["", "open"])
@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_and_cursors_in_both_directions_give_every_grant_once(client, own, seeded, state, limit):
    post_all(seeded, *[GRANT | {"grant_ref": f"g{n}"} for n in range(20)])
    post_all(seeded, *[{"type": "revoke", **ORG, "grant_ref": f"g{n}"} for n in range(20) if n % 3 == 1])
    expected = refs(page(client, own, state=state, limit=100))
    assert len(expected) == (26 if state == "" else 15)

    pages = [page(client, own, state=state, limit=limit, page=n + 1) for n in range(-(-len(expected) // limit))]
    assert [ref for one in pages for ref in refs(one)] == expected
    walked, document = [pages[0]], pages[0]
    while (cursor := document["pages"]["next_cursor"]) is not None:
        document = page(client, own, state=state, limit=limit, cursor=cursor)
        walked.append(document)
    assert [(refs(one), one["pages"]) for one in walked] == [(refs(one), one["pages"]) for one in pages]
    back = [document]
    while (cursor := document["pages"]["prev_cursor"]) is not None:
        document = page(client, own, state=state, limit=limit, cursor=cursor)
        assert document["pages"]["direction"] == "prev"
        back.append(document)
    assert [ref for one in reversed(back) for ref in refs(one)] == expected
    for one in (*pages, *back):
        pages_object = one["pages"]
        again = page(client, own, state=state, limit=limit, cursor=pages_object["cursor"])
        assert refs(again) == refs(one)
        assert (pages_object["total_items"], pages_object["total_pages"]) == (len(expected), len(pages))
    past = page(client, own, state=state, limit=limit, page=len(pages) + 1)
    assert (past["items"], past["pages"]["has_next"], past["pages"]["next_cursor"]) == ([], False, None)
    assert refs(page(client, own, limit=limit, cursor=past["pages"]["prev_cursor"])) == expected[-limit:]


def test_a_cursor_keeps_its_place_while_grants_are_added_and_closed(client, own, seeded):
    first = page(client, own, state="open", limit=1)
    post_all(seeded, GRANT | {"grant_ref": "new"}, {"type": "revoke", **ORG, "grant_ref": "pending"})
    second = page(client, own, state="open", limit=1, cursor=first["pages"]["next_cursor"])
    assert (refs(second), second["pages"]["page"]) == (["active"], 2)


@pytest.mark.parametrize("state", ["", "open"])
def test_an_organisation_without_grants_has_an_empty_list(client, bearer, state):
    found = page(client, bearer, state=state)
    pages = found["pages"]
    assert (found["items"], pages["total_items"], pages["total_pages"], pages["page"]) == ([], 0, 0, 1)
    assert (pages["has_next"], pages["has_prev"], pages["next_cursor"], pages["prev_cursor"]) == (False,) * 2 + (
        None,
    ) * 2


def test_wrong_requests_are_refused_and_no_cursor_leads_elsewhere(client, own, bearer):
    grants = page(client, own, limit=1)["pages"]["next_cursor"]
    feed = client.get("/credits/usage", headers=own, params={"limit": 1}).json()["pages"]["next_cursor"]
    refused = [
        (own, {"state": "closed"}, "invalid_filter"),
        (own, {"state": ["open", "open"]}, "invalid_filter"),
        (own, {"page": "0"}, "invalid_page"),
        (own, {"limit": "101"}, "invalid_page"),
        (own, {"cursor": "x"}, "invalid_page"),
        (own, {"cursor": grants, "page": "1"}, "invalid_page"),
        (own, {"cursor": grants, "state": "open"}, "invalid_page"),
        (own, {"cursor": feed}, "invalid_page"),
        (bearer, {"cursor": grants}, "invalid_page"),
        (own, {"kind": "allot"}, "invalid_parameter"),
    ]
    for headers, parameters, code in refused:
        assert_refused(client.get(PATH, headers=headers, params=parameters), 400, f"credit.grants.{code}")
    assert_refused(
        client.get("/credits/usage", headers=own, params={"cursor": grants}), 400, "credit.usage.invalid_page"
    )
