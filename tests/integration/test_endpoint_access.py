"""Which keys may read which organisation, and the error of the others."""

import pytest

from feeds.keys import create_key, new_secret, revoke_key, set_member
from tests.integration.endpoint_requests import PATH, assert_refused, headers_of, refs
from tests.seed import MIXED


@pytest.mark.parametrize(
    "headers",
    [
        [], [("Authorization", "")], [("Authorization", "Bearer")], [("Authorization", "Bearer ")],
        [("Authorization", "Basic dTpw")], [("Authorization", f"Bearer {new_secret()}")],
        [("Authorization", new_secret())], [("Authorization", b"Bearer \xff\xfe")], [("Authorization", b"Bearer ufk_\x00")],
    ],
)  # fmt: skip
def test_without_a_valid_key_the_body_is_always_the_same(client, headers):
    answer = client.get(PATH, headers=headers, params={"kind": "nonsense", "page": 0})

    body = assert_refused(answer, 401, "credit.handler.identity_missing")
    assert body["message"] == "An authenticated organization identity is required"
    assert set(body) == {"object", "code", "message"}
    assert answer.headers["www-authenticate"] == "Bearer"


def test_revoked_keys_and_personal_keys_without_an_organisation_get_that_body_too(client, seeded):
    unknown = client.get(PATH, headers=headers_of(new_secret()))
    key, revoked = create_key(seeded, org_id="org_a")
    revoke_key(seeded, key.key_id)
    _, personal = create_key(seeded, user_id="ann")

    for secret in (revoked, personal):
        answer = client.get(PATH, headers=headers_of(secret))
        assert_refused(answer, 401, "credit.handler.identity_missing")
        assert answer.content == unknown.content
    assert client.get(PATH, headers=headers_of(personal, **{"X-Org-ID": ""})).content == unknown.content


def test_two_authorization_headers_are_refused(client, bearer):
    assert client.get(PATH, headers=[*bearer.items(), *bearer.items()]).status_code == 401


def test_the_scheme_bearer_may_be_written_in_any_case(client, bearer):
    assert (
        client.get(PATH, headers={"Authorization": bearer["Authorization"].replace("Bearer", "bEARER")}).status_code
        == 200
    )


def test_a_key_that_may_not_read_is_forbidden(client, bearer, seeded):
    _, lacking = create_key(seeded, org_id="org_a", permissions=[])
    _, personal = create_key(seeded, user_id="ann")
    set_member(seeded, "org_a", "ann", "member")
    tries = [
        bearer | {"X-Org-ID": "org_b"}, bearer | {"X-Org-ID": "org_a,org_a"}, headers_of(lacking),
        headers_of(personal, **{"X-Org-ID": "org_a"}), headers_of(personal, **{"X-Org-ID": "org_b"}),
    ]  # fmt: skip

    for headers in tries:
        assert_refused(client.get(PATH, headers=headers, params={"page": 0}), 403, "authorize.forbidden")


def test_a_member_reads_with_a_personal_key(client, seeded):
    _, personal = create_key(seeded, user_id="ann")
    set_member(seeded, "org_b", "ann", "billing")

    assert len(refs(client.get(PATH, headers=headers_of(personal, **{"X-Org-ID": "org_b"})))) == len(MIXED)


def test_an_organisation_named_twice_is_refused_after_all_other_checks(client, bearer, seeded):
    _, personal = create_key(seeded, user_id="ann")
    set_member(seeded, "org_a", "ann", "owner")
    twice = [("X-Org-ID", "org_a"), ("X-Org-ID", "org_a")]

    for key in (bearer, headers_of(personal)):
        headers = [*key.items(), *twice]
        assert_refused(client.get(PATH, headers=headers), 400, "credit.usage.invalid_parameter")
        assert_refused(client.get(PATH, headers=headers, params={"kind": "x"}), 400, "credit.usage.invalid_filter")
        assert_refused(client.get(PATH, headers=headers, params={"page": "x"}), 400, "credit.usage.invalid_page")
    assert client.get(PATH, headers=[*headers_of(new_secret()).items(), *twice]).status_code == 401
