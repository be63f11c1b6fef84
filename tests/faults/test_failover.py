"""A planned failover of Redis: the old primary lives on as a replica and keeps its connections."""

import json
from contextlib import ExitStack

import pytest
import redis
from celery import Celery
from redis.exceptions import ReadOnlyError

from feeds.keys import create_key
from tests.acceptance.relay import Relay
from tests.faults.events_and_pages import read_page, usage
from tests.servers import valkey_server
from worker.audit.ledger import audit_ledger
from worker.intake.streams import add, connect, shard_of, stream_of
from worker.producer import Producer


@pytest.fixture
def pair(monkeypatch):
    """Give a primary, its replica, and a relay that leads to the primary."""
    monkeypatch.delenv("TEST_REDIS_URL", raising=False)
    with ExitStack() as life:
        urls = [life.enter_context(valkey_server()) for _ in range(2)]
        clients = [life.enter_context(redis.Redis.from_url(url)) for url in urls]
        yield clients, urls, life.enter_context(Relay(urls[0]))


def follow(replica, primary_url):
    """Make a server a replica of another."""
    parts = redis.connection.parse_url(primary_url)
    replica.config_set("masterauth", parts["password"])
    replica.execute_command("REPLICAOF", parts["host"], parts["port"])


def relay_url(relay, url):
    password = redis.connection.parse_url(url)["password"]
    return f"redis://default:{password}@127.0.0.1:{relay.port}/0"


def fail_over(pair):
    """Make the second server the primary; new connections through the relay lead to it, old ones stay."""
    (old, new), urls, relay = pair
    password = redis.connection.parse_url(urls[0])["password"]
    new.config_set("requirepass", password)
    relay.url = relay.url._replace(netloc=f":{password}@127.0.0.1:{redis.connection.parse_url(urls[1])['port']}")
    follow(old, f"redis://:{password}@127.0.0.1:{redis.connection.parse_url(urls[1])['port']}/0")


def test_an_open_client_adds_to_the_new_primary_at_once(pair):
    (_, new), urls, relay = pair
    with connect(relay_url(relay, urls[0])) as streams:
        assert add(streams, [(0, b"{}")])
        fail_over(pair)
        add(streams, [(0, b"{}")])
        assert new.xlen(stream_of(0)) == 1


def test_an_open_producer_goes_on(pair, wait_until):
    (_, new), urls, relay = pair
    with Producer(relay_url(relay, urls[0]), event_shards=8, usage_kinds=["ai_usage"]) as producer:
        producer.usage("org_a", "u1", "ai_usage", 1)
        fail_over(pair)
        producer.usage("org_a", "u2", "ai_usage", 1)
        producer.usage("org_a", "u3", "ai_usage", 1)
    assert sum(new.xlen(stream_of(shard)) for shard in range(8)) == 2
    wait_until(lambda: new.llen("drains") >= 1)


def test_while_no_primary_is_there_an_event_is_refused_and_can_be_sent_again(pair):
    (old, _), urls, relay = pair
    with connect(relay_url(relay, urls[0])) as streams:
        add(streams, [(0, b"{}")])
        follow(old, urls[1])
        with pytest.raises(ReadOnlyError):
            add(streams, [(0, b"{}")])
        old.execute_command("REPLICAOF", "NO", "ONE")
        add(streams, [(0, b"{}")])


def test_worker_schedule_endpoint_and_producers_survive_a_failover_without_help(
    pair, processes, connection, wait_until
):
    (_, new), urls, relay = pair
    url = relay_url(relay, urls[0])
    follow(new, urls[0])
    wait_until(lambda: new.info("replication")["master_link_status"] == "up")
    connection.execute("INSERT INTO organisations (org_id) VALUES ('org_a')")
    secret = create_key(connection, org_id="org_a")[1]
    worker = processes.worker(env={"REDIS_URL": url})
    schedule = processes.schedule(env={"REDIS_URL": url})
    base = processes.endpoint(env={"REDIS_URL": url})
    with Producer(url, event_shards=8) as producer, Celery("host", broker=url) as host:
        producer.usage("org_a", "u1", "ai_usage", 1)
        host.send_task("events.post", args=[[usage("u2")]], queue="events")
        wait_until(lambda: set(read_page(base, secret)[1]) == {"u1", "u2"}, within_s=20)
        new.execute_command("REPLICAOF", "NO", "ONE")
        fail_over(pair)
        producer.usage("org_a", "u3", "ai_usage", 1)
        new.xadd(stream_of(shard_of("org_a", 8)), {"event": json.dumps(usage("u4"))})
    with Celery("another host", broker=url) as host:  # kombu's own client would be refused once, as it is stock
        host.send_task("events.post", args=[[usage("u5")]], queue="events")
    wait_until(lambda: set(read_page(base, secret)[1]) == {"u1", "u2", "u3", "u4", "u5"}, within_s=60)
    assert (worker.poll(), schedule.poll()) == (None, None)
    assert audit_ledger(connection).findings == []
