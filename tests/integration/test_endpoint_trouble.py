"""What readers get while Postgres is broken or hangs: what is cached, or a failure in time."""

import time
from unittest.mock import patch

from feeds.endpoint import identity
from tests.integration.endpoint_asks import PATH, assert_refused

UNCACHED = {"kind": "expire"}


def test_a_ledger_that_cannot_be_read_is_a_failure_and_says_no_more(client, bearer, seeded):
    page = client.get(PATH, headers=bearer)
    seeded.execute("ALTER TABLE movements RENAME TO gone")

    body = assert_refused(client.get(PATH, headers=bearer, params=UNCACHED), 500, "credit.usage.failed")
    assert body == {"object": "error", "code": "credit.usage.failed", "message": "Failed to list credit activity"}
    assert client.get(PATH, headers=bearer).content == page.content
    assert client.get(PATH, headers=bearer, params={"page": 2}).status_code == 200


def test_an_answer_comes_within_two_seconds_when_postgres_hangs_though_the_key_is_asked_about_first(
    client, bearer, seeded
):
    with patch.object(identity, "FRESH_S", 0.0):
        page = client.get(PATH, headers=bearer)
    with seeded.transaction():
        seeded.execute("LOCK TABLE movements, api_keys IN ACCESS EXCLUSIVE MODE")
        for _ in range(2):
            started = time.monotonic()
            assert_refused(client.get(PATH, headers=bearer, params=UNCACHED), 500, "credit.usage.failed")
            assert time.monotonic() - started < 2
        assert client.get(PATH, headers=bearer).content == page.content
