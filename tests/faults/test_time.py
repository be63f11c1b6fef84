"""Time is another producer: a worker that was away for hours, and many ends in one second."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.asks import grant, send, usage
from worker.audit.ledger import audit_ledger
from worker.broker.app import DRAINS, make_app
from worker.intake.streams import place, queue
from worker.producer import Producer

STALE_WAKES = 20_000
ENDING = 2_000
EXPIRED_WITHIN_S = 60


@pytest.fixture
def app(redis_url):
    with make_app(redis_url) as app:
        yield app


def test_wakes_of_ten_hours_are_forgotten_and_events_are_posted_within_seconds(
    processes, app, client, refs, waiting, wait_until
):
    """Fault 41."""
    app.send_task("events.drain", queue=DRAINS, routing_key=DRAINS, expires=-1)
    wake = client.lindex(DRAINS, 0)
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(STALE_WAKES):
            pipeline.lpush(DRAINS, wake)
        pipeline.execute()
    send(client, *[usage(f"u{number}") for number in range(1000)])
    processes.worker()
    processes.schedule()
    wait_until(lambda: waiting() == 0, within_s=10)
    assert len(refs()) == 1000
    assert client.llen(DRAINS) < 10


def test_many_ends_in_one_second_are_all_posted_and_usage_is_posted_meanwhile(
    processes, connection, client, redis_url, waiting, wait_until
):
    """Fault 26, smaller: `tests/faults/storm.py` makes it as large as it should be, and measures."""
    processes.worker()
    processes.schedule()
    ends = datetime.now(UTC) + timedelta(seconds=15)
    with client.pipeline(transaction=False) as pipeline:
        placed = [place(grant(f"g{n}", f"org_{n}", expires_at=ends.isoformat()), 8) for n in range(ENDING)]
        queue(pipeline, placed)
        pipeline.execute()
    allots = "SELECT count(*) FROM movements WHERE kind = 'a'"
    wait_until(lambda: connection.execute(allots).fetchone()[0] == ENDING, within_s=14)
    expires = "SELECT count(*) FROM movements WHERE kind = 'e'"
    took = []
    with Producer(redis_url) as producer:
        while connection.execute(expires).fetchone()[0] < ENDING:
            assert datetime.now(UTC) < ends + timedelta(seconds=EXPIRED_WITHIN_S)
            began = time.monotonic()
            ref = f"u{len(took)}"
            producer.usage("org_busy", ref, "ai_usage", 1)
            wait_until(lambda ref=ref: is_posted(connection, ref), within_s=5)
            took.append(time.monotonic() - began)
    assert audit_ledger(connection).findings == []
    assert took


def is_posted(connection, ref):
    return connection.execute("SELECT count(*) FROM movements WHERE usage_ref = %s", [ref]).fetchone()[0]
