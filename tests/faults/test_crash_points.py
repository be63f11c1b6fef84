"""A process is killed at the worst moment: nothing is lost or posted twice, and pages are right within 5 s.

The numbers of faults are rows of the table in tests/README.md.
"""

import os
import signal
from threading import Event, Thread

import psycopg
import pytest

from feeds.keys import create_key
from tests.faults.deployment import pool_pids
from tests.faults.events_and_pages import read_page, send, usage
from worker.audit.ledger import audit_ledger
from worker.broker.app import make_app
from worker.producer import Producer

DRAIN_THAT_DIES_AT = """
import os, signal, sys
from time import monotonic
from worker import process
from worker.intake import batch, drain

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

publish = process.publish
if sys.argv[1] == "publish":
    publish = die
else:
    setattr(batch, sys.argv[1], die)
with process.database().connection() as connection:
    intake = batch.Intake(connection, process.streams(), process.ledger(), publish, lambda: None)
    drain.drain(intake, monotonic() + 10)
"""
SERVED_WITHIN_S = 5


@pytest.fixture
def secret(connection):
    connection.execute("INSERT INTO organisations (org_id) VALUES ('org_a')")
    return create_key(connection, org_id="org_a")[1]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("move_offsets", id="1-before-the-commit"),
        pytest.param("publish", id="2-after-the-commit-before-the-feeds"),
        pytest.param("finish", id="3-after-the-feeds-before-the-delete"),
    ],
)
def test_after_a_drain_is_killed_its_events_are_posted_once_and_served_within_five_seconds(
    processes, connection, client, secret, refs, count_waiting, wait_until, moment
):
    base = processes.endpoint()
    processes.worker()
    processes.schedule()
    send(client, usage("u0"))
    wait_until(lambda: read_page(base, secret) == (200, ["u0"]), within_s=10)
    wait_until(lambda: count_waiting() == 0)
    [worker, schedule] = [process for name, process, _ in processes.started if name in {"worker", "schedule"}]
    processes.kill(schedule)
    processes.kill(worker)

    send(client, usage("u1"), usage("u2"))
    killed = processes.start("drain", "-c", DRAIN_THAT_DIES_AT, moment)
    assert killed.wait(timeout=20) == -signal.SIGKILL
    assert count_waiting() == 2
    assert refs() == (["u0"] if moment == "move_offsets" else ["u0", "u1", "u2"])

    processes.schedule()
    processes.worker()
    wait_until(lambda: read_page(base, secret) == (200, ["u2", "u1", "u0"]), within_s=SERVED_WITHIN_S)
    wait_until(lambda: count_waiting() == 0, within_s=SERVED_WITHIN_S)
    assert refs() == ["u0", "u1", "u2"]
    assert audit_ledger(connection).findings == []


def test_a_worker_that_is_killed_inside_its_transaction_writes_nothing_and_the_next_worker_posts(
    processes, connection, database_url, client, secret, refs, count_waiting, wait_until
):
    """Fault 1, with a real worker: the test holds a lock, so that the worker stops inside its transaction."""
    worker = processes.worker()
    with psycopg.connect(database_url) as locking:
        locking.execute("SELECT FROM organisations FOR UPDATE")
        processes.schedule()
        send(client, usage("u1"))
        wait_until(lambda: is_blocked(connection), within_s=15)
        processes.kill(worker)
    assert refs() == []
    processes.worker()
    wait_until(lambda: count_waiting() == 0, within_s=15)
    assert refs() == ["u1"]


def is_blocked(connection):
    waiting_for_lock = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return connection.execute(waiting_for_lock).fetchone()[0]


def test_a_drain_that_outlasts_its_time_limit_is_rolled_back_and_drained_again(
    processes, patched_worker, connection, database_url, client, secret, refs, count_waiting, wait_until
):
    """Fault 6 of tests/README.md."""
    worker = patched_worker("tasks.app.conf.task_soft_time_limit = None\ntasks.drain.time_limit = 2")
    before = pool_pids(worker)
    with psycopg.connect(database_url) as locking:
        locking.execute("SELECT FROM organisations FOR UPDATE")
        processes.schedule()
        send(client, usage("u1"))
        wait_until(lambda: is_blocked(connection), within_s=15)
        wait_until(lambda: set(before) - set(pool_pids(worker)), within_s=10)
    processes.wait_for_line(worker, "Hard time limit (2s) exceeded for events.drain")
    wait_until(lambda: count_waiting() == 0, within_s=15)
    assert refs() == ["u1"]
    assert worker.poll() is None


@pytest.mark.timeout(300)
def test_twenty_warm_shutdowns_under_load_lose_nothing(
    processes, connection, redis_url, refs, count_waiting, wait_until, client
):
    """Fault 5, through the streams and through Celery."""
    sent, stop = [], Event()
    workers = [processes.worker("-n", "w0@%h")]
    processes.schedule()

    def send_until_stopped():
        with Producer(redis_url) as producer, make_app(redis_url) as app:
            while not stop.wait(0.02):
                number = len(sent)
                producer.usage("org_a", f"s{number}", "ai_usage", 1)
                app.send_task("events.post", args=[[usage(f"c{number}", "org_b")]], queue="events")
                sent.extend((f"s{number}", f"c{number}"))

    sending = Thread(target=send_until_stopped)
    sending.start()
    try:
        for number in range(1, 21):
            workers.append(processes.worker("-n", f"w{number}@%h"))
            workers[-2].send_signal(signal.SIGTERM)
    finally:
        stop.set()
        sending.join(30)
    assert [worker.wait(timeout=60) for worker in workers[:-1]] == [0] * 20
    wait_until(lambda: count_waiting() == 0 and client.llen("events") == 0, within_s=30)
    wait_until(lambda: len(refs()) == len(sent), within_s=30)
    assert sorted(refs()) == sorted(sent)
    assert len(sent) > 400


def test_a_worker_whose_pool_processes_are_killed_under_load_posts_everything_once(
    processes, redis_url, refs, wait_until
):
    """Fault 4, through the streams."""
    worker = processes.worker()
    processes.schedule()
    sent = []
    with Producer(redis_url) as producer:
        for number in range(60):
            producer.usage("org_a", f"u{number}", "ai_usage", 1)
            sent.append(f"u{number}")
            if number % 20 == 10 and (pool := pool_pids(worker)):
                os.kill(pool[number % len(pool)], signal.SIGKILL)
    wait_until(lambda: len(refs()) >= len(sent), within_s=30)
    assert refs() == sent
    assert worker.poll() is None
