"""`GET /credits` tells what an organisation has, now and at an earlier moment."""

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import redis

from feeds import balance as balance_module
from feeds import counters
from feeds import grants as grants_module
from feeds.cached.epoch import read_epoch
from feeds.cached.format import BALANCE, hash_key, list_key, make_stamp
from feeds.cached.worker_connection import WorkerConnection
from feeds.cached.writer import publish
from feeds.keys import create_key
from tests.integration import test_ledger
from tests.integration.endpoint_requests import assert_refused, headers_of
from tests.integration.nested_plans import scans_of
from worker.audit.feeds import audit_feeds
from worker.migrations.roles import create_roles

PATH = "/credits"
ORG = {"org_id": "org_new"}
GRANT = {"type": "grant", **ORG, "source": "plan"}
USAGE = {"type": "usage", **ORG, "usage_kind": "ai_usage"}


def moment(**ahead):
    """Return a time so far from now, as an event writes it."""
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


@pytest.fixture
def feeds_redis(seeded, redis_url):
    """Give a worker's connection to the feeds' Redis, which has known the epoch for long."""
    with closing(WorkerConnection(redis_url)) as connection:
        connection.note_epoch(read_epoch(seeded), since=float("-inf"))
        yield connection


@pytest.fixture
def post_all(seeded, feeds_redis):
    """Give a function that posts events, and publishes them as a worker does."""

    def post(*events, grace_s=0):
        posted = test_ledger.post_all(seeded, *events, grace_s=grace_s)
        publish(feeds_redis, seeded, posted.movements, (), posted.revisions)

    return post


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


def test_available_is_what_can_be_drawn_now_by_source_with_the_next_expiry(client, own, post_all):
    soon, later = "2100-01-01T00:00:00Z", "2100-06-01T00:00:00Z"
    post_all(
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
    post_all(USAGE | {"usage_ref": "u2", "credits": 100}, USAGE | {"usage_ref": "u3", "credits": 5})
    found = balance(client, own)
    assert (found["available_credits"], found["overflow_credits"], found["next_expiry"]) == (0, 8, None)


def test_a_start_and_an_end_that_no_movement_shows_yet_count_at_once(client, own, seeded, post_all):
    post_all(
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


def test_the_balance_at_every_moment_is_that_of_the_last_movement_up_to_it(client, own, seeded, post_all):
    for number in range(1, 12):
        credits_given = {"credits": number}
        event = USAGE | {"usage_ref": f"u{number}"} if number % 3 else GRANT | {"grant_ref": f"g{number}"}
        kind = {"usage_kind": "tm_usage"} if number % 2 and number % 3 else {}
        post_all(event | credits_given | kind)
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


def count(name):
    return counters.hits["redis"] if name == "hits" else sum(counters.misses.values())


def test_a_repeated_balance_comes_from_redis_until_any_event_changes_it(client, own, post_all):
    post_all(GRANT | {"grant_ref": "g", "credits": 100})
    changes = [
        (USAGE | {"usage_ref": "u1", "credits": 30}, 70, 0),
        (GRANT | {"grant_ref": "pending", "credits": 5, "effective_at": "2100-01-01T00:00:00Z"}, 70, 5),
        ({"type": "revoke", **ORG, "grant_ref": "pending"}, 70, 0),
        (USAGE | {"usage_ref": "u2", "usage_kind": "tm_usage", "credits": 100}, 0, 0),
    ]
    assert balance(client, own)["available_credits"] == 100
    for event, available, pending in changes:
        misses, hits = count("misses"), count("hits")
        before = balance(client, own)
        assert (count("misses"), count("hits")) == (misses, hits + 1)
        assert before != (post_all(event), balance(client, own))[1]
        assert count("misses") == misses + 1
        after = balance(client, own)
        assert (after["available_credits"], after["pending_credits"]) == (available, pending)
        assert count("misses") == misses + 1


@pytest.mark.parametrize("grant", [{"effective_at": 1}, {"expires_at": 1}])
def test_a_cached_balance_ends_at_the_next_start_or_end_by_no_clock_but_the_servers(
    client, own, seeded, post_all, grant
):
    [(field, seconds)] = grant.items()
    post_all(GRANT | {"grant_ref": "g", "credits": 5, field: moment(seconds=seconds)}, grace_s=60)
    first = balance(client, own)
    hits = count("hits")
    assert balance(client, own) == first
    assert count("hits") == hits + 1
    time.sleep(1.05)
    then = balance(client, own)
    assert {first["available_credits"], then["available_credits"]} == {0, 5}
    assert first["available_credits"] != then["available_credits"]


def test_a_balance_that_was_read_before_a_batch_is_not_put_after_it(client, own, seeded, post_all, monkeypatch):
    """The worker publishes between the reader's look into Postgres and its put."""
    post_all(GRANT | {"grant_ref": "g", "credits": 100})
    from feeds import read_through  # noqa: PLC0415

    read, waiting = read_through.read_balance, [USAGE | {"usage_ref": "u1", "credits": 30}]

    async def read_and_be_overtaken(postgres, org_id):
        found = await read(postgres, org_id)
        if waiting:
            post_all(waiting.pop())
        return found

    monkeypatch.setattr(read_through, "read_balance", read_and_be_overtaken)
    assert balance(client, own)["available_credits"] == 70
    assert balance(client, own)["available_credits"] == 70


def test_a_damaged_balance_is_not_served(client, own, seeded, post_all, feeds_redis, redis_url):
    post_all(GRANT | {"grant_ref": "g", "credits": 100})
    first = balance(client, own)
    key = list_key(hash_key(make_stamp(read_epoch(seeded), feeds_redis.server()), "org_new"), BALANCE)
    with redis.Redis.from_url(redis_url) as server:
        [element] = server.lrange(key, 0, -1)
        server.lset(key, 0, element.replace(b"100", b"900"))
        assert balance(client, own) == first
        server.delete(key)
        assert balance(client, own) == first


def test_verify_finds_a_cached_balance_that_a_worker_has_not_made_outdated(client, own, seeded, post_all, feeds_redis):
    post_all(GRANT | {"grant_ref": "g", "credits": 100})
    balance(client, own)
    numbers = {"ai_usage": 0, "tm_usage": 1}
    assert audit_feeds(seeded, feeds_redis, numbers, "org_new", within_s=0.2).findings == []
    test_ledger.post_all(seeded, USAGE | {"usage_ref": "u", "credits": 1})
    [finding] = audit_feeds(seeded, feeds_redis, numbers, "org_new", within_s=0.2).findings
    assert (finding.rule, finding.place) == ("cached_count", f"feed {BALANCE}")


def test_the_balance_comes_from_the_cache_while_postgres_is_away(client, own, seeded, post_all, environment):
    post_all(GRANT | {"grant_ref": "g", "credits": 100})
    first = balance(client, own)
    name = seeded.info.dbname
    with psycopg.connect(environment["DATABASE_URL"].replace(name, "postgres"), autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            assert balance(client, own) == first
            refused = client.get(PATH, headers=own, params={"at": "2026-06-01T10:00:00Z"})
            assert_refused(refused, 500, "credit.balance.failed")
            assert refused.json()["message"] == "Failed to read the credit balance"
        finally:
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.fixture
def many_closed(seeded, post_all):
    """Give an organisation with 600 closed grants, one that is active and one that is pending; nothing is analysed."""
    seeded.execute("INSERT INTO organisations (org_id) VALUES ('org_new')")
    refs = [f"g{number}" for number in range(600)]
    post_all(*[GRANT | {"grant_ref": ref, "credits": 5} for ref in refs])
    post_all(*[{"type": "revoke", **ORG, "grant_ref": ref} for ref in refs])
    post_all(
        GRANT | {"grant_ref": "active", "credits": 5},
        GRANT | {"grant_ref": "pending", "credits": 5, "effective_at": "2100-01-01T00:00:00Z"},
        *[USAGE | {"usage_ref": f"u{number}", "credits": 1} for number in range(600)],
    )


@pytest.mark.parametrize("role", [None, "usage_feeds_reader"])
@pytest.mark.parametrize(
    ("query", "parameters", "table"),
    [
        (balance_module.SQL["read_balance"], {}, "grants"),
        (
            grants_module.SQL["read_open_grants"],
            {"skip": 0, "ceiling": 2**62, "floor": 0, "limit": 20, "upwards": False},
            "grants",
        ),
        (grants_module.SQL["read_grants"], {"skip": 0, "ceiling": 2**62, "floor": 0, "limit": 20}, "grants"),
        (balance_module.SQL["read_balance_at"], {"at": datetime(2100, 1, 1, tzinfo=UTC)}, "movements"),
    ],
    ids=["balance", "open grants", "grants", "balance at a moment"],
)
def test_each_read_costs_what_it_returns(seeded, many_closed, role, query, parameters, table):
    """Closed grants and other movements are not read, with and without row-level security."""
    create_roles(seeded)
    for scan in scans_of(seeded, table, query, parameters | {"org_id": "org_new"}, role):
        read_rows = (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
        assert read_rows <= 22, scan
