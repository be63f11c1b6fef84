"""What the tests of faults ask for."""

import psycopg
import pytest
import redis

from tests.acceptance.relay import Relay
from worker.intake.streams import stream_of


class HalfOpenRelay(Relay):
    """A relay whose connections can die without a word: new ones are as good as ever."""

    age = 0

    def die_silently(self):
        """Swallow all that comes on the connections there are."""
        self.age += 1

    def pass_on(self, source, target, counted):
        born = self.age
        swallowed = Swallowing(target, lambda: self.age != born)
        super().pass_on(source, swallowed, counted)


class Swallowing:
    """A socket that sends nothing once it is dead."""

    def __init__(self, target, is_dead):
        self.target, self.is_dead = target, is_dead

    def sendall(self, data):
        if not self.is_dead():
            self.target.sendall(data)

    def shutdown(self, how):
        self.target.shutdown(how)


@pytest.fixture
def changed_worker(processes, environment, tmp_path):
    """Give the function that starts a worker in whose processes `code` has run first."""

    def start(code, *options):
        (tmp_path / "changed.py").write_text(f"import os, signal\nfrom worker import tasks\n{code}\napp = tasks.app\n")
        path = f"{tmp_path}:{environment['PYTHONPATH']}"
        celery = ("-m", "celery", "-A", "changed:app", "worker", "--concurrency", "2", "--loglevel", "info")
        worker = processes.start("worker", *celery, *options, env={"PYTHONPATH": path})
        processes.wait_for_line(worker, " ready.", within_s=30)
        return worker

    return start


@pytest.fixture
def redis_relay(redis_url):
    with HalfOpenRelay(redis_url) as relay:
        yield relay


@pytest.fixture
def postgres_relay(database_url):
    with HalfOpenRelay(database_url) as relay:
        yield relay


@pytest.fixture
def connection(database_url):
    """Give a connection to the ledger that no relay is on the way of."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def refs(connection):
    """Give the function that lists the refs of all lines."""
    return lambda: [ref for (ref,) in connection.execute("SELECT usage_ref FROM movements ORDER BY org_no, position")]


@pytest.fixture
def dead(connection):
    """Give the function that lists the dead letters."""
    return lambda: connection.execute("SELECT code, raw FROM dead_letters ORDER BY dead_letter_id").fetchall()


@pytest.fixture
def client(redis_url):
    """Give a client of the streams' Redis that no relay is on the way of."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def waiting(client):
    """Give the function that counts what waits in the streams."""
    return lambda: sum(client.xlen(stream_of(shard)) for shard in range(8))
