"""Celery as people use it: options of a message, bad messages, and workers that die or stop while they hold some."""

import signal
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from celery import Celery

from tests.faults.events_and_pages import usage
from worker.broker.transport import CONSUMERS, DEAD_AFTER_S, HELD, PRIORITY_STEPS, TEND

ORG = "0190b2c8-0000-7000-8000-000000000001"


@pytest.fixture
def producer(redis_url):
    """Give a stock Celery client that knows only the broker's address."""
    with Celery("host", broker=redis_url) as app:
        app.conf.task_ignore_result = True
        yield app


def send(producer, *refs, **options):
    producer.send_task("events.post", args=[[usage(ref) for ref in refs]], queue="events", **options)


def test_a_message_with_any_option_is_posted(processes, producer, client, dead_letters, refs, wait_until):
    processes.worker()
    processes.schedule()
    now = datetime.now(UTC)
    send(producer, "plain")
    for priority in range(10):
        send(producer, f"priority_{priority}", priority=priority)
    send(producer, "same_id_1", task_id="the-same")
    send(producer, "same_id_2", task_id="the-same")
    send(producer, "late", countdown=2)
    send(producer, "past", eta=now - timedelta(days=1))
    send(producer, "expired", expires=now - timedelta(hours=1))
    send(producer, "expiring", expires=60)
    for compression in ("gzip", "zlib", "bzip2"):
        send(producer, compression, compression=compression)
    send(producer, "headers", headers={"mine": "x"}, shadow="another name", time_limit=30, soft_time_limit=20)
    send(producer, "replying", reply_to="nowhere", ignore_result=False)
    producer.conf.task_protocol = 1
    send(producer, "protocol_1")
    producer.conf.task_protocol = 2
    expected = {
        "plain", "same_id_1", "same_id_2", "late", "past", "expired", "expiring", "gzip", "zlib", "bzip2", "headers",
        "replying", "protocol_1", *(f"priority_{priority}" for priority in range(10)),
    }  # fmt: skip
    wait_until(lambda: len(refs()) + len(dead_letters()) >= len(expected), within_s=30)
    assert (set(refs()), dead_letters()) == (expected, [])
    wait_until(lambda: not client.keys("events:post:*:*"), within_s=10)  # acknowledged, so forgotten


def test_python_values_from_celerys_json_are_converted_back_and_a_bad_event_is_buried_alone(
    processes, producer, connection, dead_letters, refs, wait_until
):
    processes.worker()
    processes.schedule()
    at = datetime(2026, 6, 1, 10, tzinfo=UTC)
    events = [
        usage("time", org_id=UUID(ORG), occurred_at=at),
        usage("whole", credits=Decimal(7)),
        usage(UUID(ORG)),
        usage("naive", occurred_at=datetime(2026, 6, 1, 10)),  # noqa: DTZ001 -- a time without an offset
        usage("fraction", credits=Decimal("1.5")),
        usage("bytes", org_id=b"org_a"),
        "no event",
        usage("last"),
    ]
    producer.send_task("events.post", args=[events], queue="events")
    wait_until(lambda: len(refs()) + len(dead_letters()) == 8, within_s=20)
    assert set(refs()) == {"time", "whole", ORG, "bytes", "last"}
    assert {code for code, _ in dead_letters()} == {"invalid_event"}
    assert connection.execute("SELECT credits FROM movements WHERE usage_ref = 'whole'").fetchone() == (-7,)


def test_a_list_item_that_is_not_a_message_becomes_a_dead_letter_and_the_worker_goes_on(
    processes, producer, client, dead_letters, refs, wait_until
):
    worker = processes.worker()
    processes.schedule()
    for item in (b"no envelope", b"\xff\x00", b"{}", b'{"body": 1, "properties": {"delivery_tag": "x"}}'):
        client.lpush("events", item)
    send(producer, "after")
    wait_until(lambda: refs() == ["after"] and len(dead_letters()) == 4, within_s=20)
    assert b"no envelope" in {raw for _, raw in dead_letters()}
    assert worker.poll() is None


DIES_HOLDING = """
from worker.broker.transport import Channel

def die(channel, loop):
    if channel.mover.read_response(disable_decoding=True) is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    channel.sent_at = None

Channel.finish_move = die
"""


def test_a_message_that_a_killed_worker_held_is_delivered_again_within_seconds(
    processes, patched_worker, producer, client, refs, wait_until
):
    killed = patched_worker(DIES_HOLDING)
    for number in range(3):
        send(producer, f"u{number}")
    assert killed.wait(timeout=20) == -signal.SIGKILL
    [held] = client.keys(f"{HELD}*")
    assert client.llen(held) == 1
    processes.schedule()
    processes.worker()
    wait_until(lambda: len(refs()) == 3, within_s=DEAD_AFTER_S + 10)
    assert sorted(refs()) == ["u0", "u1", "u2"]
    wait_until(lambda: not client.exists(held) and client.hlen(CONSUMERS) == 1)


def test_what_a_dead_consumer_held_returns_to_the_front_of_the_queue_oldest_first(client):
    client.rpush("events", "waits")
    client.hset(CONSUMERS, mapping={"dead": 1, "ahead": 2**33, "alive": client.time()[0]})
    for consumer in ("dead", "alive"):
        client.lpush(f"{HELD}{consumer}", f"{consumer}-oldest", f"{consumer}-newest")
    client.lpush("events\x06\x169", "priority-oldest", "priority-newest")
    keys = (CONSUMERS, "events", *(f"events\x06\x16{step}" for step in PRIORITY_STEPS))
    assert client.eval(TEND, len(keys), *keys, "me", DEAD_AFTER_S, HELD) == 2
    taken = [client.rpop("events") for _ in range(client.llen("events"))]
    assert taken == [b"dead-oldest", b"dead-newest", b"waits", b"priority-oldest", b"priority-newest"]
    assert client.hkeys(CONSUMERS) == [b"alive", b"me"]
    assert client.llen(f"{HELD}alive") == 2


def test_a_worker_that_is_stopped_gives_back_what_it_has_not_begun(processes, producer, client, refs, wait_until):
    worker = processes.worker()
    processes.schedule()
    for number in range(40):
        send(producer, f"u{number}")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) is not None
    wait_until(lambda: not client.keys(f"{HELD}*"))
    processes.worker()
    wait_until(lambda: len(refs()) == 40, within_s=20)
    assert set(refs()) == {f"u{number}" for number in range(40)}


WITH_KOMBUS_TRANSPORT = """
from kombu.transport import TRANSPORT_ALIASES
TRANSPORT_ALIASES["redis"] = "kombu.transport.redis:Transport"
"""


def test_a_worker_with_kombus_own_transport_and_celerys_tools_work_beside_ours(
    processes, patched_worker, producer, client, dead_letters, refs, wait_until
):
    patched_worker(WITH_KOMBUS_TRANSPORT, "--hostname", "kombu@%h")
    processes.worker("--hostname", "ours@%h")
    processes.schedule()
    for number in range(100):
        send(producer, f"u{number}")
    wait_until(lambda: len(refs()) == 100, within_s=30)
    assert (len(set(refs())), dead_letters()) == (100, [])
    wait_until(lambda: not client.keys(f"{HELD}*") and not client.exists("unacked"))
    inspect = processes.start("inspect", "-m", "celery", "-A", "worker.tasks", "inspect", "ping")
    assert inspect.wait(timeout=30) == 0
    assert "2 nodes online" in processes.output(inspect)
