"""A caller that tries keys learns nothing, neither from the answers nor from the work that they take."""

from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest

from feeds.cached.protocol import RedisProtocol
from feeds.keys import create_key, new_secret, revoke_key
from feeds.postgres import Postgres
from tests.integration.endpoint_requests import PATH, headers_of


@pytest.fixture
def work():
    """Give the list of round trips that requests cause: statements to Postgres, and bytes written to Redis."""
    seen, fetch, flush = [], Postgres.fetch, RedisProtocol.flush

    async def watched_fetch(postgres, query, parameters):
        if b"epoch" not in query and b"SET last_used_at" not in query:
            seen.append((query, tuple(parameters)))
        return await fetch(postgres, query, parameters)

    def watched_flush(connection):
        if b"INFO" not in b"".join(connection.unsent):
            seen.append(b"".join(connection.unsent))
        flush(connection)

    with patch.object(Postgres, "fetch", watched_fetch), patch.object(RedisProtocol, "flush", watched_flush):
        yield seen


@pytest.mark.parametrize("named", [{}, {"X-Org-ID": "org_a"}, {"X-Org-ID": "org_b"}])
def test_unknown_revoked_and_expired_keys_get_the_same_answer_for_the_same_work(client, seeded, work, named):
    key, revoked = create_key(seeded, org_id="org_a", rate=1)
    revoke_key(seeded, key.key_id)
    _, expired = create_key(seeded, org_id="org_a", expires_at=datetime.now(UTC) - timedelta(hours=1))
    outcomes = []
    for secret in (new_secret(), revoked, expired):
        work.clear()
        answers = [client.get(PATH, headers=headers_of(secret, **named)) for _ in range(3)]
        outcomes.append(([(answer.status_code, answer.headers, answer.content) for answer in answers], list(work)))

    (answers, trips), *others = outcomes
    assert len(trips) == 1  # one read of Postgres, then the denial is remembered for a second
    assert answers[0][0] == 401
    assert answers == [answers[0]] * 3
    assert others == [(answers, trips)] * 2


def test_a_text_that_cannot_be_a_key_is_refused_without_any_work(client, seeded, work):
    _, secret = create_key(seeded, org_id="org_a")
    mistyped = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    for nonsense in (mistyped, "x", secret + "x", "ufk_" + "é" * 36, "'; DROP TABLE api_keys; --"):
        answer = client.get(PATH, headers={b"Authorization": b"Bearer " + nonsense.encode()})
        assert answer.status_code == 401
    assert work == []


@pytest.mark.parametrize(
    "hostile",
    ["org_a'; DROP TABLE api_keys; --", "' OR '1'='1", "\\' OR 1 = 1 --", "$1", "%(org_id)s", "%", "é", "org_a\\"],
)
def test_sql_in_the_name_of_an_organisation_is_forbidden(client, seeded, hostile):
    seeded.execute("INSERT INTO members (org_id, user_id, role) VALUES ('org_a', 'user', 'billing')")
    _, secret = create_key(seeded, user_id="user")

    refused = client.get(PATH, headers={b"Authorization": b"Bearer " + secret.encode(), b"X-Org-ID": hostile.encode()})

    assert (refused.status_code, refused.json()["code"]) == (403, "authorize.forbidden")
    assert client.get(PATH, headers=headers_of(secret, **{"X-Org-ID": "org_a"})).status_code == 200
