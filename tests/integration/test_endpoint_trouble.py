"""What callers get while Postgres is broken or hangs: cached pages, or an error in time."""

import time
from unittest.mock import patch

from feeds.endpoint import identity
from tests.integration.endpoint_requests import PATH, assert_refused

UNCACHED = {"kind": "expire"}


def test_a_ledger_that_cannot_be_read_is_a_500_without_details(client, bearer, seeded):
    page = client.get(PATH, headers=bearer)
    seeded.execute("ALTER TABLE movements RENAME TO gone")

    body = assert_refused(client.get(PATH, headers=bearer, params=UNCACHED), 500, "credit.usage.failed")
    assert body == {"object": "error", "code": "credit.usage.failed", "message": "Failed to list credit activity"}
    assert client.get(PATH, headers=bearer).content == page.content
    assert client.get(PATH, headers=bearer, params={"page": 2}).status_code == 200


def test_an_answer_comes_within_two_seconds_if_postgres_hangs_although_the_key_is_checked_first(client, bearer, seeded):
    with patch.object(identity, "FRESH_S", 0.0):
        page = client.get(PATH, headers=bearer)
    with seeded.transaction():
        seeded.execute("LOCK TABLE movements, api_keys IN ACCESS EXCLUSIVE MODE")
        for _ in range(2):
            started = time.monotonic()
            assert_refused(client.get(PATH, headers=bearer, params=UNCACHED), 500, "credit.usage.failed")
            assert time.monotonic() - started < 2
        assert client.get(PATH, headers=bearer).content == page.content
