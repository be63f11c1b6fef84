"""Health exits 1 if work has stopped. What only needs attention is a warning, and the exit code stays 0."""

import time
from datetime import UTC, datetime

import psycopg
import pytest
import redis

from feeds.schema import check_ledger
from tests.conftest import clear_settings
from tests.integration.command_line import run, run_json
from worker.commands import health
from worker.intake.sweep import SWEPT, sweep
from worker.settings import worker_settings


@pytest.fixture
def client(environment):
    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.set(SWEPT, client.time()[0])
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def test_a_swept_system_in_which_nothing_waits_is_healthy(client):
    found = run_json("health")

    assert (found["healthy"], found["problems"], found["warnings"]) == (True, [], [])
    assert run("health").stdout.endswith("\nHealthy.\n")


def test_health_reports_when_the_last_sweep_was(client, environment, database_url):
    client.delete(SWEPT)
    with psycopg.connect(database_url, autocommit=True) as connection:
        sweep(connection, client, check_ledger(connection, worker_settings()), lambda *_: None)

    assert 0 <= run_json("health")["last_sweep_s"] < 5


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_an_event_that_waits_too_long_is_unhealthy(client, arguments):
    client.xadd("events:{3}", {"event": "{}"}, id=f"{client.time()[0] * 1000 - 40_000}-0")

    assert "An event has waited for 4" in run("health", *arguments, code=1).stdout
    assert "An event has waited" not in run("health", "--max-age", "60", *arguments).stdout


def test_an_event_with_an_id_in_the_future_has_no_age(client):
    client.xadd("events:{3}", {"event": "{}"}, id=f"{client.time()[0] * 1000 + 10**6}-0")

    found = run_json("health")
    assert (found["waiting_events"], found["oldest_event_s"]) == (1, 0)


def test_an_old_or_missing_sweep_is_unhealthy_even_if_nothing_waits(client):
    client.set(SWEPT, client.time()[0] - 40)

    assert "There was no sweep for 4" in run("health", code=1).stdout
    run("health", "--max-sweep-age", "60")
    client.delete(SWEPT)
    assert run_json("health", "--max-sweep-age", "60", code=1)["problems"] == [
        "There was no sweep yet: are the schedule and a worker running?"
    ]


def test_health_reports_when_the_last_batch_was(client, database_url):
    assert run_json("health")["last_batch_at"] is None
    assert "last batch    never" in run("health").stdout
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE stream_offsets SET moved_at = now() - interval '3 hours' WHERE shard = 3")

    assert run_json("health")["last_batch_s"] == pytest.approx(3 * 3600, abs=60)
    assert "last batch    3.0 h ago" in run("health").stdout


def test_a_shard_whose_key_is_not_a_stream_is_unhealthy(client):
    client.set("events:{3}", "x")

    found = run_json("health", code=1)
    assert (found["broken_streams"], found["problems"]) == (1, ["1 shard cannot be read: see `usage-feeds verify`."])


def test_dead_letters_are_a_warning(client):
    run("revoke", "org_a", "nothing")
    run("drain")

    assert run_json("health")["warnings"] == ["1 dead letter: see `usage-feeds dead list`."]


def test_a_redis_that_fills_up_or_may_evict_is_a_warning(client):
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used * 5 // 4)
    client.config_set("maxmemory-policy", "allkeys-lru")

    [fills, evicts] = run_json("health")["warnings"]
    assert fills.startswith("Redis has used ")
    assert evicts.startswith("Redis may evict (allkeys-lru)")
    client.config_set("maxmemory", used * 10)
    assert run_json("health")["warnings"] == [evicts]


def test_a_feeds_redis_out_of_reach_is_a_warning_that_comes_fast(client, monkeypatch):
    monkeypatch.setenv("FEEDS_REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    clear_settings()
    begun = time.monotonic()

    found = run_json("health")

    assert time.monotonic() - begun < 5
    assert found["feeds_reachable"] is False
    [warning] = found["warnings"]
    assert warning.startswith("The feeds' Redis cannot be used, pages come from Postgres: ")
    assert "geheim" not in warning


@pytest.mark.parametrize(("ahead_s", "words"), [(600, "10 min ahead of"), (-3, "3.0 s behind"), (0.5, None)])
def test_clocks_that_differ_by_more_than_a_second_are_a_warning(ahead_s, words):
    now = datetime(2026, 6, 1, tzinfo=UTC)
    ledger = health.LedgerHealth(now, 0.0, 0, now)
    streams = health.StreamHealth(0, 0.0, 0, 0.0, 0, 0, "noeviction", 0, None, None, now.timestamp() - ahead_s)
    warnings = health.find_warnings(ledger, streams, None)
    assert [words in warning for warning in warnings] == ([True] if words else [])


def test_a_postgres_that_is_a_standby_is_unhealthy():
    now = datetime(2026, 6, 1, tzinfo=UTC)
    ledger = health.LedgerHealth(now, 0.0, 0, now, postgres_is_standby=True)
    streams = health.StreamHealth(0, 0.0, 0, 0.0, 0, 0, "noeviction", 0, None, None, now.timestamp())
    [problem] = health.find_problems(ledger, streams, 30, 30)
    assert problem.startswith("Postgres is a standby")
