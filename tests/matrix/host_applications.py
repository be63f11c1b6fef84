"""Does an application of a stranger notice nothing of usage-feeds, not even when Redis fails over?

The applications are deploy/examples/django_host.py and fastapi_host.py, as they are, in an environment without this
checkout: `.ci/run matrix` makes it, and sets HOSTS_PYTHON to its Python. Each has a Celery app, tasks, a broker and a
database of its own. All Postgres is behind PgBouncer, all Redis behind the address of a pair that fails over.
"""

import json
import os
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack
from itertools import count
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
import redis

from tests.faults.redis_pair import RedisPair
from tests.matrix.surroundings import pgbouncer
from tests.servers import CHECKOUT, Processes, fresh_database, server_folder, wait_until, with_database
from worker.local.valkey import free_port

ORG = "org_a"
CALLERS, EVERY_S = 2, 0.1
CALLS_BETWEEN = 120
RAISES_WITHIN_S = 4.0
"""A Producer raises within this time if Redis is away."""
CALL_WITHIN_S = 3 * RAISES_WITHIN_S
"""Within this time a caller who tries again has its 2xx: one try that fails, and one that Celery repeats."""
LOST_RECEIPTS_MAX = 5
HOST_DATABASE = 9
CURRENT_APP = """
import sys, threading
from importlib import import_module
host = import_module(sys.argv[1])
from celery import current_app
names = []
def look():
    host.producer.usage("org_a", "by_hand", "ai_usage", 1)
    names.append((current_app.main, host.send_receipt.app.main))
look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
host.producer.close()
look_again = current_app.main
print(*{name for pair in names for name in pair} | {look_again})
"""
MAKE_TABLE = """
import django_host
from django.db import connection
with connection.schema_editor() as editor:
    editor.create_model(django_host.Call)
"""


class Host(NamedTuple):
    """An application: its module, how its web server and its worker start, and what the server prints once it is up."""

    module: str
    server: tuple[str, ...]
    worker: str
    is_up: str
    has_table: bool


DJANGO = Host(
    "django_host",
    ("gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:{port}", "django_host:application"),
    "django_host",
    "Booting worker",
    has_table=True,
)
FASTAPI = Host(
    "fastapi_host",
    ("uvicorn", "--port", "{port}", "fastapi_host:app"),
    "fastapi_host:tasks",
    "Uvicorn running",
    has_table=False,
)


class Callers:
    """Threads that call the host at a steady rate, each call until it is answered 2xx."""

    def __init__(self, base):
        self.base, self.numbers, self.stopped = base, count(), threading.Event()
        self.answered, self.refused, self.slowest_s = [], [], 0.0
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def run(self):
        while not self.stopped.wait(EVERY_S):
            self.call(f"call_{next(self.numbers)}")

    def call(self, ref):
        began = time.monotonic()
        while (status := post(f"{self.base}/calls/{ref}")) >= 300:
            self.refused.append((time.monotonic(), status))
            assert time.monotonic() - began < CALL_WITHIN_S, f"{ref}: still {status}"
            time.sleep(EVERY_S)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.answered.append(ref)

    def are_alive(self):
        return all(thread.is_alive() for thread in self.threads)

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join(CALL_WITHIN_S)


def post(url):
    """Send a POST, and return the status of the answer."""
    try:
        with urlopen(Request(url, method="POST"), timeout=2 * RAISES_WITHIN_S) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


class Application:
    """A host that runs: its web server, and its worker, which is started again whenever it ends."""

    def __init__(self, host, processes):
        self.host, self.processes = host, processes
        if host.has_table:
            self.run("table", "-c", MAKE_TABLE)
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        self.server = processes.start("server", "-m", *(word.format(port=port) for word in host.server))
        self.workers = []
        self.start_worker()
        processes.wait_for_line(self.server, host.is_up, within_s=30)
        processes.wait_for_line(self.workers[0], " ready.", within_s=30)

    def run(self, name, *command):
        """Run a program of the host to its end, and return what it prints."""
        process = self.processes.start(name, *command)
        assert process.wait(timeout=60) == 0, self.processes.output(process)
        return self.processes.output(process).strip()

    def start_worker(self):
        options = ("--concurrency", "2", "--loglevel", "info")
        worker = self.processes.start("worker", "-m", "celery", "--app", self.host.worker, "worker", *options)
        self.workers.append(worker)

    def look_after_worker(self):
        """Start the worker again if it has ended, as systemd does. Celery's own ends if its Redis becomes a replica."""
        if self.workers[-1].poll() is not None:
            assert "UNBLOCKED" in self.processes.output(self.workers[-1])
            self.start_worker()

    def log(self):
        return self.processes.output(self.server)

    def receipts(self):
        """Return the refs for which the host's worker ran the host's task."""
        printed = "".join(self.processes.output(worker) for worker in self.workers)
        return set(re.findall(r"receipt for (\w+)", printed))


@pytest.fixture
def life():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def folder(life):
    return life.enter_context(server_folder())


@pytest.fixture
def pair(folder, life):
    pair = RedisPair(folder / "redis", life.enter_context((folder / "redis.log").open("wb")))
    life.callback(pair.end)
    return pair


@pytest.fixture
def ours(folder, pair, life, processes, environment):
    """Start worker, schedule and endpoint; give the processes, and what reads the whole feed."""
    url = life.enter_context(pgbouncer(folder / "pgbouncer", environment["DATABASE_URL"]))
    processes.environment = environment | {"DATABASE_URL": url, "REDIS_URL": pair.url}
    secret = finish(processes, "keys", "create", "--org", ORG).splitlines()[-1]
    finish(processes, "grant", ORG, "100")
    running = {"worker": processes.worker(), "schedule": processes.schedule()}
    base = processes.endpoint()
    return processes, running, lambda: read_feed(base, secret)


@pytest.fixture
def start_host(postgres_url, folder, pair, life, tmp_path):
    """Give what starts a host in an environment of its own."""
    python = os.environ.get("HOSTS_PYTHON")
    assert python, "HOSTS_PYTHON is not set: run `.ci/run matrix`, which makes the environment of the hosts"
    name = life.enter_context(fresh_database(postgres_url))
    url = urlsplit(life.enter_context(pgbouncer(folder / "host_pgbouncer", with_database(postgres_url, name))))
    broker = f"redis+socket://:{pair.password}@{pair.folder}/primary.sock?virtual_host={HOST_DATABASE}"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "SECRET_KEY": "of-the-host",
        "PGHOST": url.hostname, "PGPORT": str(url.port), "PGUSER": url.username, "PGDATABASE": name,
        "CREDITS_REDIS_URL": pair.url, "CELERY_BROKER_URL": broker,
    }  # fmt: skip
    (tmp_path / "host").mkdir()
    processes = Processes(tmp_path / "host", environment)
    processes.python, processes.checkout = python, CHECKOUT / "deploy/examples"
    life.callback(processes.end)
    return lambda host: Application(host, processes)


def finish(processes, *arguments):
    """Run a command of usage-feeds, and return what it prints."""
    command = processes.command(*arguments)
    assert command.wait(timeout=60) == 0, processes.output(command)
    return processes.output(command).strip()


def read_feed(base, secret):
    """Return how often the ref of each usage is on the pages."""
    refs, cursor = Counter(), ""
    while cursor is not None:
        query = f"limit=100&cursor={cursor}" if cursor else "limit=100"
        request = Request(f"{base}/credits/usage?{query}", headers={"Authorization": f"Bearer {secret}"})
        with urlopen(request, timeout=5) as answer:
            page = json.load(answer)
        refs.update(item["usage_ref"] for item in page["items"] if item["kind"] != "allot")
        cursor = page["pages"]["next_cursor"]
    return refs


def go_on(callers, application):
    """Wait until some more calls are answered."""
    target = len(callers.answered) + CALLS_BETWEEN

    def is_answered():
        application.look_after_worker()
        assert callers.are_alive()
        return len(callers.answered) >= target

    wait_until(is_answered, within_s=60)


def call_while_redis_fails_over(application, pair):
    """Return the callers, when the failover began and ended, and the server's log before and long after it."""
    callers = Callers(application.base)
    try:
        go_on(callers, application)
        before, began = application.log(), time.monotonic()
        assert pair.fail_over()
        ended = time.monotonic()
        go_on(callers, application)
        settled = len(application.log())
        go_on(callers, application)
    finally:
        callers.stop()
    return callers, (began, ended), before + application.log()[settled:]


def call_again_without_receipt(callers, application):
    """Call again for what the host's own Celery has lost with its worker; return how many those are.

    Celery on Redis loses a message if its worker ends between taking it and noting that it did.
    """

    def lost():
        application.look_after_worker()
        return set(callers.answered) - application.receipts()

    try:
        wait_until(lambda: not lost(), within_s=5)
    except AssertionError:
        missing = lost()
        for ref in missing:
            callers.call(ref)
        wait_until(lambda: not lost(), within_s=20)
        return len(missing)
    return 0


@pytest.mark.parametrize("host", [DJANGO, FASTAPI], ids=lambda host: host.module)
def test_a_host_application_notices_nothing_of_usage_feeds_or_a_failover(host, ours, start_host, pair, capsys):
    processes, running, read = ours
    application = start_host(host)

    callers, (began, ended), log = call_while_redis_fails_over(application, pair)
    lost = call_again_without_receipt(callers, application)
    with capsys.disabled():
        print(
            f"\n{host.module}: {len(callers.answered)} calls, {len(callers.refused)} answers 5xx in a failover of "
            f"{ended - began:.1f} s, slowest call {callers.slowest_s:.1f} s; the host's Celery lost {lost} of its own tasks"
        )

    expected = dict.fromkeys(callers.answered, 1)
    wait_until(lambda: len(read()) >= len(expected), within_s=20)
    assert read() == expected
    assert all(status == 503 and began <= at < ended + RAISES_WITHIN_S for at, status in callers.refused)
    assert lost <= LOST_RECEIPTS_MAX
    assert "Traceback" not in log
    assert application.run("app", "-c", CURRENT_APP, host.module) == host.module
    assert_separate(pair, processes.output(running["worker"]))
    finish(processes, "verify")
    assert finish(processes, "dead", "list") == "No dead letters."
    assert [process.poll() for process in (*running.values(), application.server)] == [None] * 3
    assert len(re.findall("Booting worker", application.log())) in {0, 2}  # no worker of gunicorn was replaced


def assert_separate(pair, our_log):
    """Look for messages of the host at our broker, and for messages of ours at the host's."""
    assert "send_receipt" not in our_log
    hosts_url = pair.url.replace("db=0", f"db={HOST_DATABASE}")
    with redis.Redis.from_url(pair.url) as ours, redis.Redis.from_url(hosts_url) as hosts:
        assert ours.keys("celery*") == []
        assert hosts.keys("events*") == hosts.keys("drains*") == []
        assert hosts.keys("_kombu*") != []
