"""Is a Producer a good guest in the process of another application?"""

import json
import logging
import os
import subprocess
import sys
import time

import pytest
import redis
from celery._state import get_current_app

from feeds.settings import reader_settings
from tests.conftest import clear_settings
from tests.integration.odd_servers import cluster_node, silent_server
from tests.servers import CHECKOUT
from worker.broker.app import DRAINS, make_app, wake
from worker.broker.waker import BODY, WAKES_MAX
from worker.intake.streams import AWAKE
from worker.producer import Producer
from worker.settings import worker_settings

CLOSED = "127.0.0.1:1"
HEAD = """
import os, redis, sys, threading, time
from worker.producer import Producer
url = os.environ["URL"]
streams = redis.Redis.from_url(url)
def send(producer, ref):
    producer.usage("org_a", ref, "ai_usage", 1)
"""
IN_A_HOST = """
import logging, os, signal, sys
from celery import Celery, current_app, shared_task

host = Celery("host", broker=os.environ["HOST_BROKER"])
host.conf.update(task_default_queue="hosts", task_ignore_result=True)

@shared_task
def hosts_task():
    pass

def state():
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    loggers = logging.getLogger().handlers, logging.getLogger("celery").handlers, logging.getLogger("worker").handlers
    return dict(os.environ), signals, loggers, list(sys.path), sys.excepthook, sys.unraisablehook

before = state()
from worker.producer import Producer
producer = Producer(os.environ["URL"])
producer.usage("org_a", "u1", "ai_usage", 1)
hosts_task.delay()
producer.close()
hosts_task.delay()
assert current_app.main == "host", current_app
assert hosts_task.app.main == "host"
assert state() == before
import gc
assert "usage-feeds" not in [app.main for app in gc.get_objects() if isinstance(app, Celery)]
"""
WITHOUT_CELERY = """
import os, sys
from worker.producer import Producer
with Producer(os.environ["URL"]) as producer:
    producer.usage("org_a", "u1", "ai_usage", 1)
print(sorted({"celery", "kombu", "billiard", "psycopg"} & set(sys.modules)))
"""
FORKED = f"""{HEAD}
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: it is what a host may do
producer = Producer(url)
send(producer, "before")
stop = threading.Event()
def busy():
    while not stop.is_set():
        send(producer, "thread")
thread = threading.Thread(target=busy)
thread.start()
def child(number):
    for turn in range(3):
        send(producer, f"child-{{number}}-{{turn}}")
children = [multiprocessing.get_context("fork").Process(target=child, args=(number,)) for number in range(4)]
[each.start() for each in children]
[each.join(20) for each in children]
stop.set()
thread.join()
send(producer, "after")
print([each.exitcode for each in children])
"""
ENDING = f"""{HEAD}
import atexit
producer, used = Producer(url), Producer(url)
send(used, "before")
atexit.register(lambda: (send(producer, "atexit-new"), send(used, "atexit-used")))
def late():
    threading.main_thread().join()
    send(used, "thread")
threading.Thread(target=late).start()
"""


def run(program, url, **variables):
    """Run a program that uses a Producer, with warnings as errors; returns what it printed."""
    environment = {**os.environ, "URL": url, "PYTHONPATH": str(CHECKOUT), **variables}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:celery", "-c", program]
    done = subprocess.run(
        command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refs(client):
    """Return the refs of all events in the streams."""
    entries = [entry for shard in range(8) for _, entry in client.xrange(f"events:{{{shard}}}")]
    return [json.loads(entry[b"event"])["usage_ref"] for entry in entries]


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_a_hosts_tasks_go_to_its_own_broker_and_nothing_of_its_process_changes(redis_url, client):
    hosts = redis_url.removesuffix("/0") + "/9"
    # The variable is the host's own. Celery would take it for the address of our broker too.
    run(IN_A_HOST, redis_url, HOST_BROKER=hosts, CELERY_BROKER_URL=hosts)

    with redis.Redis.from_url(hosts) as host:
        assert host.llen("hosts") == 2
        assert host.keys("drains*") == []
    assert client.llen(DRAINS) == 1
    assert refs(client) == ["u1"]


def test_a_producer_imports_neither_celery_nor_a_database_driver(redis_url, client):
    assert run(WITHOUT_CELERY, redis_url) == "[]\n"
    assert client.llen(DRAINS) == 1


def test_a_producer_works_after_a_fork_that_interrupts_its_threads(redis_url, client):
    assert run(FORKED, redis_url) == "[0, 0, 0, 0]\n"

    added = refs(client)
    expected = ["before", "after", *(f"child-{number}-{turn}" for number in range(4) for turn in range(3))]
    assert sorted(ref for ref in added if ref != "thread") == sorted(expected)


def test_a_producer_works_while_the_interpreter_shuts_down(redis_url, client):
    run(ENDING, redis_url)
    assert sorted(refs(client)) == ["atexit-new", "atexit-used", "before", "thread"]


def test_a_wake_is_the_message_that_celery_would_send(redis_url, client):
    with Producer(redis_url) as producer:
        producer.usage("org_a", "u1", "ai_usage", 1)
    with make_app(redis_url) as app:
        wake(app)
    theirs, ours = (json.loads(message) for message in client.lrange(DRAINS, 0, -1))

    assert ours.keys() == theirs.keys()
    assert [ours[name] for name in ("body", "content-type", "content-encoding")] == [
        theirs[name] for name in ("body", "content-type", "content-encoding")
    ]
    assert json.loads(BODY) == [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    for name in ("headers", "properties"):
        own = {"id", "root_id", "origin", "correlation_id", "delivery_tag"}
        assert own & ours[name].keys() <= theirs[name].keys()
        assert {key: value for key, value in ours[name].items() if key not in own} == {
            key: value for key, value in theirs[name].items() if key in ours[name].keys() - own
        }


def test_wakes_that_no_worker_reads_do_not_fill_redis(redis_url, client):
    client.lpush(DRAINS, *["older"] * (WAKES_MAX + 5))
    with Producer(redis_url) as producer:
        producer.usage("org_a", "u1", "ai_usage", 1)
    assert client.llen(DRAINS) == WAKES_MAX
    assert b"events.drain" in client.lindex(DRAINS, 0)


@pytest.mark.parametrize(
    "broker_url",
    [f"redis://{CLOSED}/0", f"amqp://{CLOSED}//", f"amqp://{CLOSED}//;amqp://{CLOSED}//", "amqps://[::1]:1//"],
)
def test_a_failure_of_the_wake_is_logged_and_not_raised_and_the_next_wake_waits(redis_url, client, caplog, broker_url):
    with Producer(redis_url, broker_url) as producer:
        for ref in ("u1", "u2"):
            client.delete(AWAKE)
            producer.usage("org_a", ref, "ai_usage", 1)
    assert refs(client) == ["u1", "u2"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the next sweep wakes one" in caplog.text


def test_any_error_of_the_wake_is_swallowed_because_the_events_are_added(redis_url, client, caplog, monkeypatch):
    def fail():
        raise TypeError("geheim")

    with Producer(redis_url) as producer:
        monkeypatch.setattr(producer._waker, "wake", fail)
        producer.usage("org_a", "u1", "ai_usage", 1)
    assert refs(client) == ["u1"]
    assert "TypeError" in caplog.text
    assert "geheim" not in caplog.text


def test_the_options_of_an_address_do_not_make_the_caller_send_again(redis_url, client):
    with Producer(f"{redis_url}?socket_timeout=1&health_check_interval=5&client_name=host") as producer:
        producer.usage("org_a", "u1", "ai_usage", 1)
    assert refs(client) == ["u1"]
    assert client.llen(DRAINS) == 1


def test_a_producer_fails_in_time_if_redis_does_not_answer(redis_url, client):
    with silent_server() as port:
        with Producer(f"redis://127.0.0.1:{port}/0") as producer:
            started = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                producer.usage("org_a", "u1", "ai_usage", 1)
            assert time.monotonic() - started < 4
        for broker_url in (f"redis://:p@127.0.0.1:{port}/0", f"amqp://127.0.0.1:{port}//"):
            with Producer(redis_url, broker_url) as producer:
                client.delete(AWAKE)
                started = time.monotonic()
                producer.usage("org_a", "u1", "ai_usage", 1)
                assert time.monotonic() - started < 8


def test_blanks_and_line_ends_around_values_are_ignored_by_every_process_alike(redis_url, monkeypatch):
    values = {"USAGE_KINDS": "b_usage ,\ta_usage\r\n", "EVENT_SHARDS": " 4\n", "EXPIRY_GRACE_S": "\t60 "}
    addresses = {"REDIS_URL": f" {redis_url}\n", "CELERY_BROKER_URL": "  ", "FEEDS_REDIS_URL": "\n"}
    for name, value in (values | addresses).items():
        monkeypatch.setenv(name, value)
    clear_settings()
    with Producer() as producer:
        made = producer.event_shards, producer.usage_kinds
    for settings in (worker_settings(), reader_settings()):
        assert (settings.event_shards, settings.usage_kinds, settings.expiry_grace_s) == (*made, 60)
        assert settings.redis_url == settings.feeds_redis_url == redis_url
    assert made == (4, ("b_usage", "a_usage"))
    assert worker_settings().celery_broker_url == redis_url
    clear_settings()


def test_what_is_passed_beats_the_environment(redis_url, client, monkeypatch):
    unusable = {
        "REDIS_URL": f"redis://{CLOSED}",
        "CELERY_BROKER_URL": "sqs://",
        "EVENT_SHARDS": "x",
        "USAGE_KINDS": " ",
    }
    for name, value in unusable.items():
        monkeypatch.setenv(name, value)
    with Producer(redis_url, redis_url, event_shards=8, usage_kinds=["x_usage"]) as producer:
        producer.usage("org_a", "u1", "x_usage", 1)
    assert refs(client) == ["u1"]
    assert client.llen(DRAINS) == 1


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        ({"redis_url": "redis+sentinel://:geheim@h/m"}, "redis_url is not a valid address: Redis Sentinel"),
        ({"redis_url": "redis://:geheim#@h"}, "redis_url is not a valid address: it holds a #"),
        ({"broker_url": "sqs://geheim@"}, "broker_url is not a valid address: set one like"),
        ({"event_shards": 0}, "EVENT_SHARDS must be a whole number"),
        ({"usage_kinds": []}, "USAGE_KINDS names no usage kind"),
    ],
)
def test_what_cannot_be_used_is_a_valueerror_of_one_line(passed, words):
    with pytest.raises(ValueError) as refused:
        Producer(**{"redis_url": "redis://h", **passed})
    assert str(refused.value).startswith(words)
    assert "geheim" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_node_of_a_cluster_is_refused_when_a_producer_first_sends():
    events = [{"type": "settle", "org_id": f"org_{number}"} for number in range(9)]
    with cluster_node() as url, Producer(url) as producer, pytest.raises(ValueError, match="of a Redis Cluster"):
        producer.send(events)


def test_the_app_of_our_worker_does_not_become_the_current_app_either():
    before = get_current_app()
    with make_app("redis://h"):
        assert get_current_app() is before
