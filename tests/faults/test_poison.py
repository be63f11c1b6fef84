"""Messages and entries that no task can take, or that kill the process that takes them.

Faults 27, 35 and 43 of tests/README.md.
"""

import base64
import json
import pickle
import uuid

from tests.faults.events_and_pages import send, usage
from worker.broker.app import make_app
from worker.intake.poison import key_of
from worker.intake.streams import shard_of, stream_of


def push(client, body, task="events.post", content_type="application/json", **headers):
    """Put a message into the queue without Celery, as a producer in any language can."""
    message_id = str(uuid.uuid4())
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"lang": "py", "id": message_id, "task": task, **headers} if task else {},
        "properties": {
            "correlation_id": message_id,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "events", "routing_key": "events"},
            "priority": 0,
            "body_encoding": "base64",
        },
    }
    client.lpush("events", json.dumps(message))


def send_tasks(redis_url, *refs):
    with make_app(redis_url) as app:
        for ref in refs:
            app.send_task("events.post", args=[[usage(ref)]], queue="events")


def test_a_message_that_no_task_can_take_becomes_a_dead_letter_and_the_messages_around_it_are_posted(
    processes, redis_url, client, dead_letters, refs, wait_until
):
    worker = processes.worker()
    processes.schedule()
    bodies = {
        b"[[1],{},{}]": {"task": "events.unknown"},
        pickle.dumps(print): {"content_type": "application/x-python-serialize"},
        b"[[{,": {},
        b'{"no": "envelope"}': {"task": None},
        b"\xff\xfe": {"content_type": "application/data"},
        b'[["nonsense", 5], {"a": 1}, {}]': {},
    }
    for number, (body, options) in enumerate(bodies.items()):
        send_tasks(redis_url, f"u{number}")
        push(client, body, **options)
    send_tasks(redis_url, "last")
    wait_until(lambda: len(dead_letters()) == len(bodies), within_s=20)
    wait_until(lambda: set(refs()) == {"last", *(f"u{number}" for number in range(len(bodies)))}, within_s=20)
    buried = {raw for _, raw in dead_letters()}
    assert set(list(bodies)[:-1]) <= buried
    assert {code for code, _ in dead_letters()} <= {"undecodable", "invalid_event"}
    assert worker.poll() is None


def test_messages_of_twenty_megabytes_are_cut_and_buried_and_the_worker_goes_on(
    processes, redis_url, client, dead_letters, refs, wait_until
):
    worker = processes.worker()
    processes.schedule()
    event = usage("large") | {"org_id": "x" * 20_000_000}
    push(client, json.dumps([[[event]], {}, {}]).encode())
    push(client, b"x" * 20_000_000, task="events.unknown")
    send_tasks(redis_url, "after")
    wait_until(lambda: refs() == ["after"] and len(dead_letters()) == 2, within_s=30)
    assert {code for code, _ in dead_letters()} == {"too_large"}
    assert worker.poll() is None


def test_a_message_that_always_kills_its_process_is_tried_a_bounded_number_of_times_and_buried(
    processes, patched_worker, redis_url, dead_letters, refs, wait_until, tmp_path
):
    """Fault 4 of tests/README.md."""
    worker = patched_worker(
        "add_once = tasks.add_once\n"
        "def add_or_die(streams, placed, delivery):\n"
        "    if b'deadly' in placed[0][1]:\n"
        f"        open({str(tmp_path / 'tries')!r}, 'a').write('x')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return add_once(streams, placed, delivery)\n"
        "tasks.add_once = add_or_die"
    )
    processes.schedule()
    send_tasks(redis_url, "deadly", "u1")
    wait_until(lambda: len(dead_letters()) == 1, within_s=60)
    wait_until(lambda: refs() == ["u1"])
    assert (tmp_path / "tries").read_text() == "x" * 6
    [(code, raw)] = dead_letters()
    assert code == "invalid_event"
    assert b"deadly" in raw
    assert worker.poll() is None


ORGANISATIONS = {shard_of(f"org_{number}", 8): f"org_{number}" for number in range(200)}
"""An organisation for each of the eight shards."""

DIES_WHEN_POSTING = """
from worker.intake import batch
post_entries = batch.post_entries

def post_or_die(connection, ledger, entries, **options):
    if any(b"deadly" in entry.raw for entry in entries):
        os.kill(os.getpid(), signal.SIGKILL)
    return post_entries(connection, ledger, entries, **options)

batch.post_entries = post_or_die
"""


def test_an_event_that_kills_its_process_is_buried_and_the_events_of_all_other_shards_are_posted(
    processes, patched_worker, client, dead_letters, refs, wait_until
):
    events = [usage("deadly" if shard == 3 else f"good_{shard}", org_id) for shard, org_id in ORGANISATIONS.items()]
    assert len(events) == 8
    send(client, *events)  # before any worker: one batch holds all eight
    worker = patched_worker(DIES_WHEN_POSTING)
    processes.schedule()
    wait_until(lambda: len(dead_letters()) + len(refs()) == 8, within_s=90)
    assert [(code, b"deadly" in raw) for code, raw in dead_letters()] == [("unpostable", True)]
    assert sorted(refs()) == sorted(event["usage_ref"] for event in events if event["usage_ref"] != "deadly")
    assert worker.poll() is None


DRAIN_THAT_DIES_WHEN_READING = """
import os, signal
from time import monotonic
from worker import process
from worker.intake import batch, drain

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

batch.parse_entries = die
with process.database().connection() as connection:
    intake = batch.Intake(connection, process.streams(), process.ledger(), process.publish, lambda: None)
    drain.drain(intake, monotonic() + 10)
"""


def test_the_death_of_a_drain_that_reads_entries_is_counted(processes, client):
    send(client, usage("u1"))
    killed = processes.start("drain", "-c", DRAIN_THAT_DIES_WHEN_READING)
    assert killed.wait(timeout=20) == -9
    assert client.hget(key_of(shard_of("org_a", 8)), "deaths") == b"1"


DRAIN_WITH_LITTLE_MEMORY = """
import resource, sys
from worker.commands import cli
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, resource.RLIM_INFINITY))
cli(["drain"])
"""
"""This drain dies if it holds more than a few of the large entries at once."""


def test_a_drain_with_little_memory_buries_entries_of_many_megabytes_and_posts_the_entries_around_them(
    processes, client, connection, refs
):
    stream = stream_of(shard_of("org_a", 8))
    send(client, usage("before"))
    large = b"x" * 80_000_000
    for _ in range(6):
        client.xadd(stream, {"event": large})
    send(client, usage("after"))
    drain = processes.start("drain", "-c", DRAIN_WITH_LITTLE_MEMORY)
    assert drain.wait(timeout=60) == 0
    assert refs() == ["before", "after"]
    found = connection.execute("SELECT code, octet_length(raw), raw_bytes FROM dead_letters").fetchall()
    assert found == [("too_large", 65_536, len(large))] * 6
    assert client.xlen(stream) == 0
