"""A scrape reports what happened, and names no organisation, key or address."""

import asyncio
import json
import re
import threading
import time
from unittest.mock import patch

import psycopg
import pytest
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from feeds.endpoint import metrics
from feeds.endpoint.asgi import build_app
from feeds.keys import create_key, format_key_id, list_keys, new_secret
from tests.conftest import clear_settings
from tests.integration.command_line import run
from tests.integration.endpoint_requests import PATH, headers_of
from tests.servers import CHECKOUT
from worker.intake import counters
from worker.intake.streams import shard_of, stream_of
from worker.metrics.scrape import measure


@pytest.fixture(autouse=True)
def no_reuse(monkeypatch):
    """Make every scrape measure, and forget the counts of earlier tests."""
    monkeypatch.setattr(metrics, "FRESH_S", 0.0)
    counters.pending.clear()


@pytest.fixture
def client(seeded):
    """Give a client of the endpoint with the metrics of the write side, as `serve` runs it."""
    with TestClient(build_app([measure]), raise_server_exceptions=False) as client:
        yield client


def samples(text):
    """Return the value of each sample, by its name and the values of its labels, `type` before `outcome`."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client):
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


def rise(before, after):
    """Return by how much the counters have risen, by name and labels, without our prefix."""
    return {
        (name.removeprefix("usage_feeds_").removesuffix("_total"), *labels): value - before.get((name, *labels), 0)
        for (name, *labels), value in after.items()
        if name.startswith("usage_feeds_") and name.endswith("_total") and value != before.get((name, *labels), 0)
    }


def test_answers_hits_misses_refills_and_invalid_items_are_counted(client, bearer, redis_url):
    before = scrape(client)
    page = client.get(PATH, headers=bearer)  # a miss, then a refill
    client.get(PATH, headers=bearer)  # from the process
    client.get(PATH, headers=bearer, params={"limit": 19})  # from Redis
    client.get(PATH, headers=bearer | {"If-None-Match": page.headers["etag"]})  # from the process
    client.get(PATH, headers=bearer, params={"page": 0})
    client.get(PATH)
    with redis.Redis.from_url(redis_url) as server:
        [entries] = [key for key in server.keys("feeds:*") if server.type(key) == b"list"]
        server.lset(entries, -1, server.lindex(entries, -1).replace(b"credits", b"cr3dits"))
    client.get(PATH, headers=bearer, params={"limit": 18})

    assert rise(before, scrape(client)) == {
        ("answers", "page"): 4,
        ("answers", "unchanged"): 1,
        ("answers", "credit.usage.invalid_page"): 1,
        ("answers", "credit.handler.identity_missing"): 1,
        ("cache_hits", "process"): 2,
        ("cache_hits", "redis"): 1,
        ("cache_misses", "cold"): 1,
        ("cache_misses", "corrupt"): 1,
        ("cache_failed_proofs", "corrupt"): 1,
        ("refills", "put"): 2,
    }


def test_events_movements_and_batches_are_counted_by_type_outcome_and_kind(client, redis_url, database_url):
    def event(**fields):
        return json.dumps({"org_id": "org_work", **fields})

    added = [
        event(type="grant", grant_ref="g", credits=5, source="plan"),
        event(type="usage", usage_ref="u", usage_kind="ai_usage", credits=7),
        event(type="usage", usage_ref="u", usage_kind="ai_usage", credits=8),
        event(type="revoke", grant_ref="never"),
        event(type="settle"),
        "nonsense",
    ]
    stream = stream_of(shard_of("org_work", 8))
    before = scrape(client)
    with redis.Redis.from_url(redis_url) as server:
        for one in added:
            server.xadd(stream, {"event": one})
        waiting = scrape(client)
        shard = str(shard_of("org_work", 8))
        assert waiting["usage_feeds_stream_events", shard] == 6
        assert 0 <= waiting["usage_feeds_stream_oldest_seconds", shard] < 5
        run("drain")

    after = scrape(client)
    assert rise(before, after) == {
        ("events", "grant", "posted"): 1,
        ("events", "usage", "posted"): 1,
        ("events", "usage", "conflict"): 1,
        ("events", "revoke", "unknown_grant"): 1,
        ("events", "settle", "posted"): 1,
        ("events", "unknown", "undecodable"): 1,
        ("movements", "allot"): 1,
        ("movements", "consume"): 1,
        ("movements", "overflow"): 1,
        ("batches",): 1,
    }
    dead = {labels[0]: value for (name, *labels), value in after.items() if name == "usage_feeds_dead_letters"}
    assert {code for code, number in dead.items() if number} == {"conflict", "unknown_grant", "undecodable"}
    assert {"unpostable", "too_large", "invalid_event", "occurred_in_future"} < set(dead)
    assert after["usage_feeds_stream_events", shard] == 0
    assert 0 <= after["usage_feeds_last_batch_age_seconds",] < 10


def test_every_split_of_a_batch_is_counted(client, redis_url, database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE grants ADD CHECK (grant_ref <> 'bad')")
    before = scrape(client)
    with redis.Redis.from_url(redis_url) as server:
        for ref in ("a", "b", "bad", "c"):
            grant = {"type": "grant", "org_id": "org_work", "grant_ref": ref, "credits": 5, "source": "plan"}
            server.xadd(stream_of(shard_of("org_work", 8)), {"event": json.dumps(grant)})
    run("drain")

    risen = rise(before, scrape(client))
    assert risen["batch_splits",] == 2
    assert risen["events", "grant", "unpostable"] == 1
    assert risen["events", "grant", "posted"] == 3


def test_the_ages_of_the_last_sweep_and_the_last_verify_are_reported(client, redis_url):
    before = scrape(client)
    assert not {name for name, *_ in before} & {
        "usage_feeds_last_sweep_age_seconds",
        "usage_feeds_last_verify_age_seconds",
    }
    with redis.Redis.from_url(redis_url) as server:
        server.set("events:swept", server.time()[0] - 40)
        server.hset("events:verified", mapping={"at": server.time()[0] - 100, "differences": 2})
    after = scrape(client)
    assert after["usage_feeds_last_sweep_age_seconds",] == pytest.approx(40, abs=5)
    assert after["usage_feeds_last_verify_age_seconds",] == pytest.approx(100, abs=5)
    assert after["usage_feeds_last_verify_differences",] == 2


def test_verify_notes_how_many_differences_the_whole_ledger_has(environment, redis_url):
    with redis.Redis.from_url(redis_url) as server:
        run("keys", "create", "--org", "org_a")
        run("verify", "org_a")
        assert not server.exists("events:verified")
        run("verify")
        assert server.hget("events:verified", "differences") == b"0"
        server.set("events:{3}", "not a stream")
        run("verify", code=1)
        assert int(server.hget("events:verified", "differences")) >= 1


def test_memory_with_its_limit_and_broken_shards_are_reported(client, redis_url):
    with redis.Redis.from_url(redis_url) as server:
        limit = server.info("memory")["used_memory"] * 10
        server.config_set("maxmemory", limit)
        server.set("events:{3}", "not a stream")
        try:
            found = scrape(client)
        finally:
            server.config_set("maxmemory", 0)
    for role in ("feeds", "streams"):
        assert 0 < found["usage_feeds_redis_memory_bytes", role] < limit
        assert found["usage_feeds_redis_memory_limit_bytes", role] == limit
        assert found["usage_feeds_server_up", f"redis_{role}"] == 1
    assert found["usage_feeds_stream_broken", "3"] == 1
    assert found["usage_feeds_stream_broken", "4"] == 0
    assert ("usage_feeds_stream_events", "3") not in found


def test_a_scrape_needs_no_key_and_names_no_organisation_key_or_address(client, seeded, bearer):
    unknown = new_secret()
    client.get(PATH, headers=bearer | {"X-Org-ID": "org_b"})
    client.get(PATH, headers=headers_of(unknown, **{"X-Org-ID": "org_strange"}), params={"kind": "org_strange"})
    client.get("/org_strange", headers=bearer)

    text = client.get("/metrics").text

    secret = bearer["Authorization"].split()[1]
    forbidden = [secret, unknown, "org_", "ref_", "ufk_", "127.0.0.1", "postgresql:", "redis:"]
    forbidden += [format_key_id(key.key_id) for key in list_keys(seeded)] + [
        key.key_id.hex for key in list_keys(seeded)
    ]
    assert [word for word in forbidden if word in text] == []


def test_a_scrape_answers_even_if_servers_are_away_and_says_which(client, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:geheim@127.0.0.1:1/d")
    monkeypatch.setenv("REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    clear_settings()
    began = time.monotonic()

    found = scrape(client)

    assert time.monotonic() - began < 5
    assert found["usage_feeds_server_up", "postgres"] == 0
    assert found["usage_feeds_server_up", "redis_streams"] == 0
    assert found["usage_feeds_server_up", "redis_feeds"] == 1
    assert ("usage_feeds_answers_total", "page") in found


def test_a_hundred_concurrent_scrapes_measure_once_and_outside_the_event_loop(client, monkeypatch):
    threads = []
    monkeypatch.setattr(metrics, "FRESH_S", 60.0)
    sources = [lambda: threads.append(threading.current_thread()) or []]
    scrapes = metrics.Scrapes(metrics.Multiplexer("redis://127.0.0.1:1/0"), sources)

    async def read_all():
        return await asyncio.gather(*(scrapes.read() for _ in range(100)))

    answers = asyncio.run(read_all())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert set(answers) == {answers[0]}
    assert b"usage_feeds_answers_total" in answers[0]


def test_counts_that_a_full_redis_refuses_stay_pending(redis_url):
    counters.pending["batches"] += 3
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory", 1)
        try:
            counters.flush(server)
        finally:
            server.config_set("maxmemory", 0)
        assert counters.pending["batches"] == 3
        counters.flush(server)
        counters.flush(server)
        assert server.hgetall("events:counts") == {b"batches": b"3"}


def test_every_metric_that_the_dashboard_or_a_rule_names_exists(client):
    text = client.get("/metrics").text
    existing = set(re.findall(r"^# TYPE (\w+) ", text, flags=re.MULTILINE))
    dashboard = json.loads((CHECKOUT / "deploy/grafana/usage-feeds.json").read_text())
    rules = yaml.safe_load((CHECKOUT / "deploy/prometheus/rules.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    plotted = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerted = [rule["expr"] for rule in alerts]

    named = set(re.findall(r"\b(?:usage_feeds|process)_\w+", " ".join(plotted + alerted)))
    assert named - existing == set()
    ours = {name for name in existing if name.startswith("usage_feeds_")}
    assert ours - set(re.findall(r"\w+", " ".join(plotted))) == {
        "usage_feeds_stream_broken",
        "usage_feeds_shard_failure_age_seconds",
    }
    for rule in alerts:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "action"}
    for expression in plotted + alerted:
        assert expression.count("(") == expression.count(")")
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_label_that_a_rule_selects_exists(client):
    lines = client.get("/metrics").text
    rules = (CHECKOUT / "deploy/prometheus/rules.yaml").read_text()
    for name, label, value in re.findall(r"(usage_feeds_\w+){(\w+)=\"([\w.]+)\"}", rules):
        assert f'{name}{{{label}="{value}"}}' in lines


def test_readiness_names_the_server_that_is_away_and_fails_if_both_are(client, seeded, bearer):
    postgres = client.app_state["postgres"]
    cache = client.app_state["services"].feeds.cache
    assert client.get("/readyz").json() == {"status": "ready"}

    with patch.object(type(cache.multiplexer), "server", None):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "away": ["redis"]})
        with patch.object(postgres, "address", "postgresql://127.0.0.1:1/d"), patch.object(postgres, "_idle", []):
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["away"]) == (503, ["postgres", "redis"])
    with patch.object(postgres, "address", "postgresql://127.0.0.1:1/d"), patch.object(postgres, "_idle", []):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "away": ["postgres"]})
    assert client.get("/livez").status_code == 200


def test_no_answer_can_be_opened_as_a_page_in_a_browser(client, seeded):
    _, secret = create_key(seeded, org_id="org_a")
    for path in (PATH, "/livez", "/readyz", "/metrics", "/openapi.json", "/nothing"):
        for headers in ({}, headers_of(secret)):
            answer = client.get(path, headers=headers)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
