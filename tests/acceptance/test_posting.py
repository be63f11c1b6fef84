"""Real processes post events that come through a producer, a plain XADD or the Celery task."""

import json
from urllib.request import Request, urlopen

import psycopg
import pytest
import redis

from feeds.keys import create_key
from worker.broker.app import make_app
from worker.intake.streams import shard_of, stream_of
from worker.intake.sweep import SWEPT
from worker.producer import Producer


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def count_movements(connection):
    return lambda: connection.execute("SELECT count(*) FROM movements").fetchone()[0]


def usage(ref, org_id="org_a"):
    return {"type": "usage", "org_id": org_id, "usage_ref": ref, "usage_kind": "ai_usage", "credits": 3}


def test_an_event_of_a_producer_is_posted_within_two_seconds_without_a_schedule(
    processes, environment, redis_url, count_movements, wait_until
):
    processes.worker()
    with Producer(redis_url) as producer:
        producer.grant("org_a", "g", 5, "plan")
        producer.usage("org_a", "u", "ai_usage", 7)
        wait_until(lambda: count_movements() == 3, within_s=2)


def test_an_event_of_a_plain_xadd_is_posted_within_three_seconds(
    processes, environment, redis_url, count_movements, wait_until
):
    processes.worker()
    processes.schedule()
    with redis.Redis.from_url(redis_url) as client:
        wait_until(lambda: client.exists(SWEPT), within_s=20)
        client.xadd(stream_of(shard_of("org_a", 8)), {"event": json.dumps(usage("u"))})
        wait_until(lambda: count_movements() == 1, within_s=3)


def test_the_celery_task_posts_the_events_of_a_list_and_buries_everything_else(
    processes, environment, database_url, redis_url, count_movements, wait_until
):
    processes.worker()
    with make_app(redis_url) as app:
        app.send_task("events.post", args=[[usage("u1"), usage("u2"), {"type": "nonsense"}, 7]], queue="events")
        app.send_task("events.post", args=["nonsense", 5], kwargs={"a": 1}, queue="events")
    wait_until(lambda: count_movements() == 2, within_s=5)
    with psycopg.connect(database_url) as connection:

        def count_dead_letters():
            return connection.execute("SELECT count(*) FROM dead_letters").fetchone()[0]

        wait_until(lambda: count_dead_letters() == 3, within_s=5)


def test_a_balance_that_is_read_after_an_entry_has_left_its_stream_counts_its_event(
    processes, connection, redis_url, wait_until
):
    """Also a grant that starts later, which writes no movement: the cached balance must still be dropped."""
    _, secret = create_key(connection, org_id="org_a")
    processes.worker()
    base = processes.endpoint()

    def read_balance():
        with urlopen(Request(f"{base}/credits", headers={"Authorization": f"Bearer {secret}"}), timeout=5) as answer:
            found = json.load(answer)
        return found["available_credits"], found["pending_credits"], found["overflow_credits"]

    assert read_balance() == (0, 0, 0)
    with redis.Redis.from_url(redis_url) as client, Producer(redis_url) as producer:
        for act, expected in (
            (lambda: producer.grant("org_a", "g", 5, "plan"), (5, 0, 0)),
            (lambda: producer.grant("org_a", "later", 9, "plan", effective_at="2100-01-01T00:00:00Z"), (5, 9, 0)),
            (lambda: producer.revoke("org_a", "later"), (5, 0, 0)),
            (lambda: producer.usage("org_a", "u", "ai_usage", 7), (0, 0, 2)),
        ):
            act()
            wait_until(lambda: client.xlen(stream_of(shard_of("org_a", 8))) == 0, within_s=5)
            assert read_balance() == expected
            assert read_balance() == expected  # the second comes from the cache
