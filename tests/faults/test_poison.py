"""Faults 27, 35, 43 and 44: messages and entries that no task can take, or that kill the process that takes them."""

import base64
import json
import pickle
import uuid

import pytest

from tests.faults.asks import send, usage
from worker.broker.app import make_app
from worker.intake.poison import key_of
from worker.intake.streams import shard_of, stream_of


def push(client, body, task="events.post", content_type="application/json", **headers):
    """Put a message into the queue as a producer of any language would, by hand."""
    one = str(uuid.uuid4())
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"lang": "py", "id": one, "task": task, **headers} if task else {},
        "properties": {
            "correlation_id": one,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "events", "routing_key": "events"},
            "priority": 0,
            "body_encoding": "base64",
        },
    }
    client.lpush("events", json.dumps(message))


def post(redis_url, *refs_):
    with make_app(redis_url) as app:
        for ref in refs_:
            app.send_task("events.post", args=[[usage(ref)]], queue="events")


def test_what_no_task_can_take_becomes_a_dead_letter_and_its_neighbours_are_posted(
    processes, redis_url, client, dead, refs, wait_until
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
    for number, (body, how) in enumerate(bodies.items()):
        post(redis_url, f"u{number}")
        push(client, body, **how)
    post(redis_url, "last")
    wait_until(lambda: len(dead()) == len(bodies), within_s=20)
    wait_until(lambda: set(refs()) == {"last", *(f"u{number}" for number in range(len(bodies)))}, within_s=20)
    kept = {raw for _, raw in dead()}
    assert set(list(bodies)[:-1]) <= kept
    assert {code for code, _ in dead()} <= {"undecodable", "invalid_event"}
    assert worker.poll() is None


def test_twenty_megabytes_are_cut_and_kept_and_the_worker_lives(processes, redis_url, client, dead, refs, wait_until):
    worker = processes.worker()
    processes.schedule()
    event = usage("large") | {"org_id": "x" * 20_000_000}
    push(client, json.dumps([[[event]], {}, {}]).encode())
    push(client, b"x" * 20_000_000, task="events.unknown")
    post(redis_url, "after")
    wait_until(lambda: refs() == ["after"] and len(dead()) == 2, within_s=30)
    assert {code for code, _ in dead()} == {"too_large"}
    assert worker.poll() is None


def test_a_list_item_that_is_no_envelope_ends_a_worker_and_the_next_one_posts_what_follows(
    processes, redis_url, client, refs, wait_until
):
    worker = processes.worker()
    client.lpush("events", b"no envelope")
    post(redis_url, "after")
    if worker.wait(timeout=30) == 0:  # Celery's own: its supervisor starts it again
        pytest.fail("it ended as if all were well")
    processes.worker()
    wait_until(lambda: refs() == ["after"], within_s=20)


def test_a_message_whose_process_is_always_killed_is_tried_a_bounded_number_of_times_and_kept(
    processes, changed_worker, redis_url, dead, refs, wait_until, tmp_path
):
    """Fault 4."""
    worker = changed_worker(
        "whole = tasks.add_once\n"
        "def add_or_die(streams, placed, delivery):\n"
        "    if b'deadly' in placed[0][1]:\n"
        f"        open({str(tmp_path / 'tries')!r}, 'a').write('x')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole(streams, placed, delivery)\n"
        "tasks.add_once = add_or_die"
    )
    processes.schedule()
    post(redis_url, "deadly", "u1")
    wait_until(lambda: len(dead()) == 1, within_s=60)
    wait_until(lambda: refs() == ["u1"])
    assert (tmp_path / "tries").read_text() == "x" * 6
    [(code, raw)] = dead()
    assert code == "invalid_event"
    assert b"deadly" in raw
    assert worker.poll() is None


ORGS = {shard_of(f"org_{number}", 8): f"org_{number}" for number in range(200)}
"""An organisation for each of the eight shards."""

DIES_POSTING = """
from worker.intake import batch
post_entries = batch.post_entries

def post_or_die(connection, ledger, entries, **more):
    if any(b"deadly" in entry.raw for entry in entries):
        os.kill(os.getpid(), signal.SIGKILL)
    return post_entries(connection, ledger, entries, **more)

batch.post_entries = post_or_die
"""


def test_an_event_that_kills_its_process_is_buried_and_the_events_of_the_other_shards_are_posted(
    processes, changed_worker, client, dead, refs, wait_until
):
    events = [usage("deadly" if shard == 3 else f"good_{shard}", org_id) for shard, org_id in ORGS.items()]
    assert len(events) == 8
    send(client, *events)  # before any worker: one batch holds all eight
    worker = changed_worker(DIES_POSTING)
    processes.schedule()
    wait_until(lambda: len(dead()) + len(refs()) == 8, within_s=90)
    assert [(code, b"deadly" in raw) for code, raw in dead()] == [("unpostable", True)]
    assert sorted(refs()) == sorted(event["usage_ref"] for event in events if event["usage_ref"] != "deadly")
    assert worker.poll() is None


DIES_READING = """
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


def test_a_death_while_the_entries_are_read_is_counted(processes, client):
    send(client, usage("u1"))
    killed = processes.start("drain", "-c", DIES_READING)
    assert killed.wait(timeout=20) == -9
    assert client.hget(key_of(shard_of("org_a", 8)), "deaths") == b"1"


WITH_LITTLE_MEMORY = """
import resource, sys
from worker.commands import cli
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, resource.RLIM_INFINITY))
cli(["drain"])
"""
"""A drain that dies if it holds more than a few of the large entries at once."""


def test_entries_of_many_megabytes_are_buried_and_their_neighbours_posted_by_a_process_with_little_memory(
    processes, client, connection, refs
):
    stream = stream_of(shard_of("org_a", 8))
    send(client, usage("before"))
    large = b"x" * 80_000_000
    for _ in range(6):
        client.xadd(stream, {"event": large})
    send(client, usage("after"))
    drain = processes.start("drain", "-c", WITH_LITTLE_MEMORY)
    assert drain.wait(timeout=60) == 0
    assert refs() == ["before", "after"]
    found = connection.execute("SELECT code, octet_length(raw), raw_bytes FROM dead_letters").fetchall()
    assert found == [("too_large", 65_536, len(large))] * 6
    assert client.xlen(stream) == 0
