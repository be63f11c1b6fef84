"""Fault 27: what comes through Celery's queue and is no task of ours, before a real worker."""

import base64
import json
import pickle
import uuid

import pytest

from tests.faults.asks import usage
from worker.broker.app import make_app


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
