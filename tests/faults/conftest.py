"""Fixtures of the fault tests: relays that drop data, patched workers, and what the ledger and the streams hold."""

import psycopg
import pytest
import redis

from tests.acceptance.relay import Relay
from worker.intake.streams import stream_of


class HalfOpenRelay(Relay):
    """A relay whose open connections can stop working without being closed. New connections work."""

    age = 0

    def drop_silently(self):
        """Discard all data on the open connections from now on."""
        self.age += 1

    def pass_on(self, source, target, counted):
        opened_at = self.age
        dropping = DroppingSocket(target, lambda: self.age != opened_at)
        super().pass_on(source, dropping, counted)


class DroppingSocket:
    """A socket that discards what it should send once it is dead."""

    def __init__(self, target, is_dead):
        self.target, self.is_dead = target, is_dead

    def sendall(self, data):
        if not self.is_dead():
            self.target.sendall(data)

    def shutdown(self, how):
        self.target.shutdown(how)


@pytest.fixture
def patched_worker(processes, environment, tmp_path):
    """Give the function that starts a worker whose processes run `code` first."""

    def start(code, *options):
        (tmp_path / "patched.py").write_text(f"import os, signal\nfrom worker import tasks\n{code}\napp = tasks.app\n")
        path = f"{tmp_path}:{environment['PYTHONPATH']}"
        celery = ("-m", "celery", "-A", "patched:app", "worker", "--concurrency", "2", "--loglevel", "info")
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
    """Give a connection to the ledger that does not pass a relay."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def refs(connection):
    """Give the function that lists the refs of all movements."""
    return lambda: [ref for (ref,) in connection.execute("SELECT usage_ref FROM movements ORDER BY org_no, position")]


@pytest.fixture
def dead_letters(connection):
    """Give the function that lists code and bytes of all dead letters."""
    return lambda: connection.execute("SELECT code, raw FROM dead_letters ORDER BY dead_letter_id").fetchall()


@pytest.fixture
def client(redis_url):
    """Give a client of the streams' Redis that does not pass a relay."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def count_waiting(client):
    """Give the function that counts the entries in all streams."""
    return lambda: sum(client.xlen(stream_of(shard)) for shard in range(8))
