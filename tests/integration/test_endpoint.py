import json
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import jsonschema_rs
import psycopg
import pytest
from starlette.testclient import TestClient

from feeds import identity
from feeds.endpoint import app
from feeds.keys import create_key, new_secret, revoke_key, set_member
from tests.seed import MIXED, seed

PATH = "/credits/usage"
LINES = MIXED * 15


@pytest.fixture
def connection(environment: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", LINES)
        seed(connection, "org_b", MIXED)
        yield connection


@pytest.fixture
def client(connection: psycopg.Connection[Any]) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def bearer(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Give the headers of an organisation's key."""
    return headers_of(create_key(connection, org_id="org_a")[1])


def headers_of(secret, **others):
    return {"Authorization": f"Bearer {secret}"} | others


def refs(answer):
    assert answer.status_code == 200, answer.text
    return [item["usage_ref"] for item in answer.json()["items"]]


def assert_refused(answer, status, code):
    """Assert that an answer is this error, in the envelope, and tells nothing of anybody's lines."""
    body = answer.json()
    assert (answer.status_code, body["object"], body["code"]) == (status, "error", code)
    assert set(body) <= {"object", "code", "message", "fields"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Authorization, X-Org-ID"
    assert "ref_" not in answer.text
    return body


def test_a_page_is_served_as_the_contract_draws_it(client, bearer):
    answer = client.get(PATH, headers=bearer, params={"page": 2, "kind": "consume", "usage_kind": "ai_usage"})

    listing = answer.json()
    assert list(listing) == ["object", "items", "pages"]
    assert len(listing["items"]) == 10
    last = listing["items"][-1]
    assert last.pop("id").startswith("cent_")
    assert last == {
        "object": "credit_entry", "kind": "consume", "credits": -3, "usage_kind": "ai_usage", "usage_ref": "ref_2",
        "created_at": "2026-06-01T10:00:02Z",
    }  # fmt: skip
    pages = listing["pages"]
    assert {name: pages[name] for name in list(pages)[:8]} == {
        "object": "cursor", "page": 2, "limit": 20, "total_items": 30, "total_pages": 2, "has_next": False,
        "has_prev": True, "direction": "next",
    }  # fmt: skip
    assert (pages["next_cursor"], len(pages)) == (None, 11)
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["vary"] == "Authorization, X-Org-ID"
    assert answer.headers["etag"].startswith('"')


def test_usage_kind_is_present_on_consume_and_overflow_alone(client, bearer):
    items = client.get(PATH, headers=bearer, params={"limit": 100}).json()["items"]

    assert {item["kind"] for item in items if "usage_kind" in item} == {"consume", "overflow"}
    assert {item["kind"] for item in items if "usage_kind" not in item} == {"allot", "expire"}
    assert all(item["created_at"].endswith("Z") and "." not in item["created_at"] for item in items)


def test_following_cursors_shows_each_line_of_the_start_once_while_lines_arrive(client, bearer, connection):
    answer, shown = client.get(PATH, headers=bearer, params={"limit": 7}), []
    while True:
        shown += refs(answer)
        pages = answer.json()["pages"]
        if pages["next_cursor"] is None:
            break
        seed(connection, "org_a", MIXED[:3])
        answer = client.get(PATH, headers=bearer, params={"cursor": pages["next_cursor"], "limit": 7})

    assert shown == [f"ref_{position}" for position in range(len(LINES), 0, -1)]
    back = client.get(PATH, headers=bearer, params={"cursor": pages["prev_cursor"], "limit": 7}).json()
    assert back["pages"]["direction"] == "prev"
    assert [item["usage_ref"] for item in back["items"]] == [f"ref_{position}" for position in range(14, 7, -1)]


def test_a_cursor_gives_the_same_page_of_the_same_filters_again(client, bearer, connection):
    answer = client.get(PATH, headers=bearer, params={"kind": "consume", "page": 2, "limit": 9})
    cursor = answer.json()["pages"]["cursor"]
    seed(connection, "org_a", MIXED * 9)

    again = client.get(PATH, headers=bearer, params={"cursor": cursor, "limit": 9})

    assert refs(again) == refs(answer)
    assert again.json()["pages"]["page"] > 2
    assert_refused(
        client.get(PATH, headers=bearer, params={"cursor": cursor, "kind": "allot"}), 400, "credit.usage.invalid_page"
    )


def test_a_cursor_of_another_organisation_is_refused(client, bearer, connection):
    others = headers_of(create_key(connection, org_id="org_b")[1])
    cursor = client.get(PATH, headers=bearer).json()["pages"]["next_cursor"]

    assert_refused(client.get(PATH, headers=others, params={"cursor": cursor}), 400, "credit.usage.invalid_page")


def test_a_combination_that_no_line_can_have_is_an_empty_list(client, bearer):
    listing = client.get(PATH, headers=bearer, params={"kind": "allot", "usage_kind": "ai_usage"}).json()

    assert (listing["items"], listing["pages"]["total_items"], listing["pages"]["total_pages"]) == ([], 0, 0)
    again = client.get(PATH, headers=bearer, params={"cursor": listing["pages"]["cursor"]}).json()
    assert again == listing


def test_a_page_past_the_end_is_an_empty_list(client, bearer):
    pages = client.get(PATH, headers=bearer, params={"page": 2147483647}).json()["pages"]

    assert (pages["has_next"], pages["has_prev"], pages["next_cursor"]) == (False, True, None)
    oldest = client.get(PATH, headers=bearer, params={"cursor": pages["prev_cursor"], "limit": 2})
    assert refs(oldest) == ["ref_2", "ref_1"]


def test_head_answers_as_get_without_the_body(client, bearer):
    got, headed = client.get(PATH, headers=bearer), client.head(PATH, headers=bearer)

    assert (headed.status_code, headed.content) == (200, b"")
    assert dict(headed.headers) == dict(got.headers)
    assert int(headed.headers["content-length"]) == len(got.content)
    assert client.head(PATH).status_code == 401


def test_an_etag_that_still_holds_gives_304_and_a_new_line_gives_200(client, bearer, connection):
    answer = client.get(PATH, headers=bearer)
    etag = answer.headers["etag"]

    for named in [etag, f"W/{etag}", f'"other", {etag}', "*"]:
        unchanged = client.get(PATH, headers=bearer | {"If-None-Match": named})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
        assert unchanged.headers["cache-control"] == "private, no-cache"
        assert client.head(PATH, headers=bearer | {"If-None-Match": named}).status_code == 304
    assert client.get(PATH, headers=bearer | {"If-None-Match": '"other"'}).status_code == 200
    seed(connection, "org_a", MIXED[:1])
    changed = client.get(PATH, headers=bearer | {"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_renewing_the_epoch_changes_every_etag(client, bearer, connection):
    etag = client.get(PATH, headers=bearer).headers["etag"]
    connection.execute("UPDATE ledger SET epoch = gen_random_uuid()")

    assert client.get(PATH, headers=bearer).headers["etag"] != etag


@pytest.mark.parametrize(
    "headers",
    [
        [], [("Authorization", "")], [("Authorization", "Bearer")], [("Authorization", "Bearer ")],
        [("Authorization", "Basic dTpw")], [("Authorization", f"Bearer {new_secret()}")],
        [("Authorization", new_secret())], [("Authorization", b"Bearer \xff\xfe")], [("Authorization", b"Bearer ufk_\x00")],
    ],
)  # fmt: skip
def test_without_a_good_key_there_is_one_body_for_all(client, headers):
    answer = client.get(PATH, headers=headers, params={"kind": "nonsense", "page": 0})

    body = assert_refused(answer, 401, "credit.handler.identity_missing")
    assert body["message"] == "An authenticated organization identity is required"
    assert set(body) == {"object", "code", "message"}
    assert answer.headers["www-authenticate"] == "Bearer"


def test_revoked_keys_and_personal_keys_without_an_organisation_get_that_body_too(client, connection):
    unknown = client.get(PATH, headers=headers_of(new_secret()))
    key, revoked = create_key(connection, org_id="org_a")
    revoke_key(connection, key.key_id)
    _, personal = create_key(connection, user_id="ann")

    for secret in (revoked, personal):
        answer = client.get(PATH, headers=headers_of(secret))
        assert_refused(answer, 401, "credit.handler.identity_missing")
        assert answer.content == unknown.content
    assert client.get(PATH, headers=headers_of(personal, **{"X-Org-ID": ""})).content == unknown.content


def test_two_authorizations_are_none(client, bearer):
    assert client.get(PATH, headers=[*bearer.items(), *bearer.items()]).status_code == 401


def test_the_scheme_of_a_key_may_be_written_in_any_case(client, bearer):
    assert (
        client.get(PATH, headers={"Authorization": bearer["Authorization"].replace("Bearer", "bEARER")}).status_code
        == 200
    )


def test_a_key_that_may_not_read_is_forbidden(client, bearer, connection):
    _, lacking = create_key(connection, org_id="org_a", permissions=[])
    _, personal = create_key(connection, user_id="ann")
    set_member(connection, "org_a", "ann", "member")
    tries = [
        bearer | {"X-Org-ID": "org_b"}, bearer | {"X-Org-ID": "org_a,org_a"}, headers_of(lacking),
        headers_of(personal, **{"X-Org-ID": "org_a"}), headers_of(personal, **{"X-Org-ID": "org_b"}),
    ]  # fmt: skip

    for headers in tries:
        assert_refused(client.get(PATH, headers=headers, params={"page": 0}), 403, "authorize.forbidden")


def test_a_member_reads_with_a_personal_key(client, connection):
    _, personal = create_key(connection, user_id="ann")
    set_member(connection, "org_b", "ann", "billing")

    assert len(refs(client.get(PATH, headers=headers_of(personal, **{"X-Org-ID": "org_b"})))) == len(MIXED)


def test_an_organisation_named_twice_is_refused_after_all_else(client, bearer, connection):
    _, personal = create_key(connection, user_id="ann")
    set_member(connection, "org_a", "ann", "owner")
    twice = [("X-Org-ID", "org_a"), ("X-Org-ID", "org_a")]

    for key in (bearer, headers_of(personal)):
        headers = [*key.items(), *twice]
        assert_refused(client.get(PATH, headers=headers), 400, "credit.usage.invalid_parameter")
        assert_refused(client.get(PATH, headers=headers, params={"kind": "x"}), 400, "credit.usage.invalid_filter")
        assert_refused(client.get(PATH, headers=headers, params={"page": "x"}), 400, "credit.usage.invalid_page")
    assert client.get(PATH, headers=[*headers_of(new_secret()).items(), *twice]).status_code == 401


def test_parameters_are_judged_in_the_contracts_order(client, bearer):
    def refused(query):
        answer = client.get(f"{PATH}?{query}", headers=bearer)
        return answer.status_code, answer.json()["code"].rpartition(".")[2], answer.json()["message"]

    assert refused("kind=x&page=0&foo=1") == (
        400,
        "invalid_filter",
        "A kind or usage_kind filter value is not recognized",
    )
    assert refused("kind=consume&kind=consume&page=0")[1] == "invalid_filter"
    assert refused("page=0&foo=1")[1] == "invalid_page"
    assert refused("foo=1")[1] == "invalid_parameter"
    assert refused("kind=%00")[1] == "invalid_filter"
    assert refused("page=%C2%B2")[1] == "invalid_page"
    assert refused("page=2147483648")[1] == "invalid_page"


def test_other_paths_and_methods_get_the_same_envelope(client, bearer):
    assert_refused(client.get("/", headers=bearer), 404, "not_found")
    assert_refused(client.get(f"{PATH}/", headers=bearer), 404, "not_found")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = client.request(method, PATH, headers=bearer)
        assert_refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD"
    assert_refused(client.post("/livez"), 405, "method_not_allowed")


def test_a_ledger_that_cannot_be_read_is_a_failure_and_says_no_more(client, bearer, connection):
    assert client.get(PATH, headers=bearer).status_code == 200
    connection.execute("ALTER TABLE movements RENAME TO gone")

    body = assert_refused(client.get(PATH, headers=bearer), 500, "credit.usage.failed")
    assert body == {"object": "error", "code": "credit.usage.failed", "message": "Failed to list credit activity"}


def test_probes_tell_the_process_from_its_readiness(client, connection):
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    connection.execute(
        "UPDATE schema_migrations SET version = '9999' WHERE version = (SELECT max(version) FROM schema_migrations)"
    )
    unready = client.get("/readyz")
    assert (unready.status_code, unready.json()["status"]) == (503, "unready")
    assert "9999" in unready.json()["reason"]
    assert client.get("/livez").status_code == 200


def test_the_description_holds_every_parameter_code_header_and_example(client):
    described = client.get("/openapi.json").json()

    operation = described["paths"][PATH]["get"]
    assert described["openapi"].startswith("3.1")
    assert [parameter["name"] for parameter in operation["parameters"]] == [
        "kind", "usage_kind", "page", "limit", "cursor", "X-Org-ID", "If-None-Match",
    ]  # fmt: skip
    assert list(operation["responses"]) == ["200", "304", "400", "401", "403", "429", "500"]
    text = json.dumps(described)
    for code in [
        "identity_missing",
        "forbidden",
        "invalid_filter",
        "invalid_page",
        "invalid_parameter",
        "rate_limited",
        "usage.failed",
    ]:
        assert code in text
    for header in ["ETag", "Cache-Control", "Vary", "Www-Authenticate", "Retry-After"]:
        assert f'"{header}"' in text
    assert "cent_01h455vb4pex5vsknk084sn02q" in text


def test_a_page_holds_what_its_description_says(client, bearer):
    described = client.get("/openapi.json").json()

    def check(name, document):
        schema = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
        jsonschema_rs.validate(schema, document)

    check("CreditList", client.get(PATH, headers=bearer, params={"limit": 100}).json())
    check("CreditList", client.get(PATH, headers=bearer, params={"page": 99}).json())
    check("Error", client.get(PATH).json())
    check("Error", client.get(PATH, headers=bearer, params={"page": 0}).json())
    check("Health", client.get("/readyz").json())


def test_an_answer_comes_within_two_seconds_when_postgres_hangs_though_the_key_is_asked_about_first(
    client, bearer, connection
):
    with patch.object(identity, "FRESH_S", 0.0):
        assert client.get(PATH, headers=bearer).status_code == 200
    with connection.transaction():
        connection.execute("LOCK TABLE movements, api_keys IN ACCESS EXCLUSIVE MODE")
        for _ in range(2):
            started = time.monotonic()
            assert_refused(client.get(PATH, headers=bearer), 500, "credit.usage.failed")
            assert time.monotonic() - started < 2
