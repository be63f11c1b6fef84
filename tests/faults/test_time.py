"""Time is another producer: no worker runs for hours; many grants end in one second.

The numbers of faults are rows of the table in tests/README.md.
"""

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.events_and_pages import grant, send, usage
from worker.audit.ledger import audit_ledger
from worker.broker.app import DRAINS, make_app
from worker.intake.streams import place, queue
from worker.producer import Producer

STALE_WAKES = 20_000
ENDING_GRANTS = 2_000
EXPIRED_WITHIN_S = 60


@pytest.fixture
def app(redis_url):
    with make_app(redis_url) as app:
        yield app


def test_ten_hours_of_stale_wakes_are_discarded_and_events_are_posted_within_seconds(
    processes, app, client, refs, count_waiting, wait_until
):
    """Fault 41 of tests/README.md."""
    app.send_task("events.drain", queue=DRAINS, routing_key=DRAINS, expires=-1)
    wake = client.lindex(DRAINS, 0)
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(STALE_WAKES):
            pipeline.lpush(DRAINS, wake)
        pipeline.execute()
    send(client, *[usage(f"u{number}") for number in range(1000)])
    processes.worker()
    processes.schedule()
    wait_until(lambda: count_waiting() == 0, within_s=10)
    assert len(refs()) == 1000
    assert client.llen(DRAINS) < 10


def test_many_grants_that_end_in_one_second_all_expire_and_usage_is_posted_meanwhile(
    processes, connection, client, redis_url, count_waiting, wait_until
):
    """Fault 26 with few grants. `tests/faults/mass_expiry.py` lets 100,000 end, and measures."""
    processes.worker()
    processes.schedule()
    ends = datetime.now(UTC) + timedelta(seconds=15)
    with client.pipeline(transaction=False) as pipeline:
        placed = [place(grant(f"g{n}", f"org_{n}", expires_at=ends.isoformat()), 8) for n in range(ENDING_GRANTS)]
        queue(pipeline, placed)
        pipeline.execute()
    allots = "SELECT count(*) FROM movements WHERE kind = 'a'"
    wait_until(lambda: connection.execute(allots).fetchone()[0] == ENDING_GRANTS, within_s=14)
    expires = "SELECT count(*) FROM movements WHERE kind = 'e'"
    waits_s = []
    with Producer(redis_url) as producer:
        while connection.execute(expires).fetchone()[0] < ENDING_GRANTS:
            assert datetime.now(UTC) < ends + timedelta(seconds=EXPIRED_WITHIN_S)
            began = time.monotonic()
            ref = f"u{len(waits_s)}"
            producer.usage("org_busy", ref, "ai_usage", 1)
            wait_until(lambda ref=ref: is_posted(connection, ref), within_s=5)
            waits_s.append(time.monotonic() - began)
    assert audit_ledger(connection).findings == []
    assert waits_s


def is_posted(connection, ref):
    return connection.execute("SELECT count(*) FROM movements WHERE usage_ref = %s", [ref]).fetchone()[0]
