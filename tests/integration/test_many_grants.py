"""Posting costs what a batch touches, however many open grants an organisation has."""

import random
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from feeds.database import begin
from tests.integration.test_ledger import movements, post_all
from worker.ledger import organisation, posting, read

NOW = datetime.now(UTC).replace(microsecond=0)
USAGE = {"type": "usage", "usage_kind": "ai_usage"}
GRANT = {"type": "grant", "source": "plan"}


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def a_time(chance, first_h, last_h):
    """Return a time so many hours from now, or none."""
    return (NOW + timedelta(hours=chance.randint(first_h, last_h))).isoformat() if chance.random() < 0.7 else None


def random_batches(seed):
    """Return batches of events of one organisation: many grants of all kinds, and usages from various times."""
    chance = random.Random(seed)
    batches = []
    for number in range(12):
        batch = []
        for n in range(chance.randint(1, 25)):
            ref = f"{number}_{n}"
            start, end = a_time(chance, -72, 2), a_time(chance, 3, 48)
            grant = GRANT | {"grant_ref": ref, "credits": chance.randint(1, 9), "priority": chance.choice([1, 50])}
            usage = USAGE | {"usage_ref": ref, "credits": chance.randint(1, 30)}
            revoke = {"type": "revoke", "grant_ref": f"{chance.randint(0, number)}_{n}"}
            batch.append(
                chance.choice([
                    grant | {"effective_at": start, "expires_at": end},
                    grant | {"effective_at": start},
                    grant,
                    usage | {"occurred_at": a_time(chance, -80, 0)},
                    usage,
                    revoke,
                ])
            )  # fmt: skip
        batches.append([{name: value for name, value in event.items() if value is not None} for event in batch])
    return batches


@pytest.mark.parametrize("seed", range(20))
def test_grants_that_are_read_bit_by_bit_are_drawn_like_grants_that_are_read_at_once(connection, monkeypatch, seed):
    for org_id, read_at_once in (("org_bit_by_bit", 2), ("org_at_once", 10_000)):
        monkeypatch.setattr(read, "READ_AT_ONCE", read_at_once)
        for batch in random_batches(seed):
            post_all(connection, *[event | {"org_id": org_id} for event in batch])
    bit_by_bit = movements(connection, "org_bit_by_bit")
    assert bit_by_bit == movements(connection, "org_at_once")
    assert any(len(movement.get("draws", ())) > 2 for movement in bit_by_bit)


def count_read_grants(connection, monkeypatch, *events):
    """Post events; return how many grants the batch read or made."""
    learned = []

    def learn(state, grant, terms):
        learned.append(grant)
        known(state, grant, terms)

    known = organisation.learn
    for module in (read, posting, organisation):
        monkeypatch.setattr(module, "learn", learn)
    assert not post_all(connection, *events).refusals
    monkeypatch.undo()
    return len(learned)


def test_a_batch_reads_only_as_many_grants_as_it_needs(connection, monkeypatch):
    grant = GRANT | {"org_id": "org_a", "credits": 10}
    post_all(connection, *[grant | {"grant_ref": f"g{n}"} for n in range(1000)])
    usage = USAGE | {"org_id": "org_a"}
    late = usage | {"occurred_at": "2020-01-01T00:00:00Z"}
    post_all(connection, *[grant | {"grant_ref": f"p{n}", "effective_at": "2100-01-01T00:00:00Z"} for n in range(500)])

    first_page = read.READ_AT_ONCE
    assert count_read_grants(connection, monkeypatch, usage | {"usage_ref": "one", "credits": 1}) == first_page
    assert count_read_grants(connection, monkeypatch, usage | {"usage_ref": "more", "credits": 2500}) == 3 * first_page
    assert count_read_grants(connection, monkeypatch, {"type": "settle", "org_id": "org_a"}) == 0
    assert count_read_grants(connection, monkeypatch, {"type": "revoke", "org_id": "org_a", "grant_ref": "g999"}) == 1
    assert count_read_grants(connection, monkeypatch, grant | {"grant_ref": "new"}) == 1
    assert count_read_grants(connection, monkeypatch, late | {"usage_ref": "late", "credits": 5}) == first_page


def test_grants_are_read_on_from_the_last_one_by_the_index_of_the_draw_order(connection):
    grant = GRANT | {"org_id": "org_a", "credits": 10, "expires_at": "2100-01-01T00:00:00Z"}
    for start in range(0, 3000, 1000):
        post_all(connection, *[grant | {"grant_ref": f"g{n}"} for n in range(start, start + 1000)])
    parameters = {
        "org_nos": [1], "after": [2500], "first_usage_at": [NOW], "last_usage_at": [NOW], "most": read.READ_AT_ONCE,
    }  # fmt: skip
    with begin(connection):
        connection.execute(read.SQL["bound_work"])
        query = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + read.SQL["read_drawable"]
        [([explained],)] = connection.execute(query, parameters).fetchall()
    plan = explained["Plan"]
    assert plan["Actual Rows"] == read.READ_AT_ONCE
    assert "grants_in_draw_order" in str(plan)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 40
