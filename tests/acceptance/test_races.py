"""Many concurrent processes: the ledger is the same as with one process."""

import json
import random
import signal
from threading import Thread

import psycopg
import pytest
from redis import Redis

from worker.audit.ledger import audit_ledger
from worker.broker.app import make_app
from worker.broker.transport import HELD
from worker.intake.streams import add, place, stream_of

ORGANISATIONS = 6

DRAIN = """
import sys
from time import monotonic
from worker import process
from worker.intake import batch, drain
with process.database().connection() as connection:
    intake = batch.Intake(connection, process.streams(), process.ledger(), lambda *_: None, lambda: None)
    until = monotonic() + float(sys.argv[1])
    while monotonic() < until:
        drain.drain(intake, min(until, monotonic() + 1))
process.database().close()
"""

KILLED_BY_U7 = (
    """
import os, signal
from worker.ledger import write
post = write.post
def post_or_die(event, *rest):
    if getattr(event, "usage_ref", "") == "u7":
        os.kill(os.getpid(), signal.SIGKILL)
    post(event, *rest)
write.post = post_or_die
"""
    + DRAIN
)


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def streams(redis_url):
    with Redis.from_url(redis_url) as client:
        yield client


def make_events(count, seed):
    """Return usages and grants of a few organisations, and the same events twice each in random order."""
    rng = random.Random(seed)
    events = [
        {
            "type": "usage",
            "org_id": f"org_{rng.randrange(ORGANISATIONS)}",
            "usage_ref": f"u{number}",
            "usage_kind": rng.choice(["ai_usage", "tm_usage"]),
            "credits": rng.randrange(1, 20),
        }
        for number in range(count)
    ] + [
        {"type": "grant", "org_id": f"org_{n}", "grant_ref": f"g{g}", "credits": 500, "source": "plan", "priority": g}
        for n in range(ORGANISATIONS)
        for g in range(5)
    ]
    doubled = events * 2
    rng.shuffle(doubled)
    return events, doubled


def credits_used(connection):
    """Return the credits that the ledger charges each organisation for its usages."""
    return dict(
        connection.execute(
            "SELECT org_id, -sum(credits)::bigint FROM movements JOIN organisations USING (org_no)"
            " WHERE kind IN ('c', 'o') GROUP BY org_id"
        ).fetchall()
    )


def credits_sent(events):
    """Return the credits of each organisation's usages."""
    totals = {}
    for event in events:
        if event["type"] == "usage":
            totals[event["org_id"]] = totals.get(event["org_id"], 0) + event["credits"]
    return totals


def count_waiting(streams):
    return sum(streams.xlen(stream_of(shard)) for shard in range(8))


def test_drains_whose_shards_share_organisations_post_each_event_once(processes, connection, streams, wait_until):
    """It fails if FOR UPDATE is removed from lock_organisations."""
    events, doubled = make_events(3000, seed=1)
    with streams.pipeline(transaction=False) as pipeline:
        for number, event in enumerate(doubled):
            pipeline.xadd(stream_of(number % 8), {"event": json.dumps(event)})
        pipeline.execute()
    drains = [processes.start("drain", "-c", DRAIN, "12") for _ in range(3)]
    wait_until(lambda: count_waiting(streams) == 0, within_s=40)
    for process in drains:
        assert process.wait(timeout=40) == 0
    assert credits_used(connection) == credits_sent(events)
    assert audit_ledger(connection).findings == []


def test_two_workers_post_events_once_that_come_through_celery_and_through_the_streams(
    processes, environment, connection, streams, redis_url, wait_until
):
    events, doubled = make_events(600, seed=2)
    processes.worker("--hostname", "one@%h")
    processes.worker("--hostname", "two@%h")
    processes.schedule()

    def send_through_celery():
        with make_app(redis_url) as app:
            for start in range(0, len(doubled), 40):
                app.send_task("events.post", args=[doubled[start : start + 40]], queue="events")

    def send_through_the_streams():
        for event in reversed(doubled):
            add(streams, [place(event, 8)])

    senders = [Thread(target=send_through_celery), Thread(target=send_through_the_streams)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    wait_until(lambda: credits_used(connection) == credits_sent(events) and count_waiting(streams) == 0, within_s=60)
    wait_until(lambda: streams.llen("events") == 0 and not streams.keys(f"{HELD}*"), within_s=30)
    wait_until(lambda: count_waiting(streams) == 0, within_s=30)
    assert credits_used(connection) == credits_sent(events)
    assert audit_ledger(connection).findings == []


def test_an_event_that_kills_its_process_is_buried_and_the_other_events_are_posted(processes, connection, streams):
    add(streams, [place({**USAGE, "usage_ref": f"u{number}"}, 8) for number in range(20)])
    for _ in range(25):
        process = processes.start("drain", "-c", KILLED_BY_U7, "0.5")
        if process.wait(timeout=30) != -signal.SIGKILL:
            break
        connection.execute("UPDATE stream_offsets SET moved_at = 'epoch'")
    assert [code for (code,) in connection.execute("SELECT code FROM dead_letters")] == ["unpostable"]
    assert connection.execute("SELECT count(*) FROM movements").fetchone() == (19,)
    assert count_waiting(streams) == 0


USAGE = {"type": "usage", "org_id": "org_a", "usage_kind": "ai_usage", "credits": 1}
