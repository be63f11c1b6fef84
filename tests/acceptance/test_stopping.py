"""Does a process that is stopped under load fail a request, or lose an event?"""

import http.client
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from itertools import count
from urllib.parse import urlsplit

import psycopg
import pytest

from feeds.keys import create_key
from tests.seed import MIXED, seed
from worker.intake.streams import add, connect, shard_of

CLIENTS = 32
REST = '"usage_kind":"ai_usage","credits":1}'
"""The end of a usage's JSON."""


class KeepAliveClient(threading.Thread):
    """Sends requests on a connection that it keeps alive, as a proxy does, until no connection is accepted any more."""

    def __init__(self, base, secret, pause_s):
        super().__init__()
        self.address, self.secret, self.pause_s = urlsplit(base), secret, pause_s
        self.answered = 0
        self.closes = 0
        self.failures = []
        self.start()

    def run(self):
        connection = None
        while True:
            if connection is None:
                connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=10)
                try:
                    connection.connect()
                except (ConnectionRefusedError, TimeoutError):
                    return  # the endpoint no longer accepts: nothing was sent
            try:
                connection.request("GET", "/credits/usage", headers={"Authorization": f"Bearer {self.secret}"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{time.monotonic():.3f} {error!r}")
                return
            if answer.status != 200:
                self.failures.append(answer.status)
            self.answered += 1
            if answer.getheader("connection") == "close":
                self.closes += 1
                connection.close()
                connection = None
            time.sleep(self.pause_s)


@pytest.fixture
def secret(environment):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", MIXED)
        return create_key(connection, org_id="org_a")[1]


def status_of(base, path):
    """Return the status of an answer, and its header Connection."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("connection")


@pytest.mark.parametrize(
    ("signal_number", "accept_for_s", "shortest_s", "longest_s"),
    [(signal.SIGTERM, "2", 2, 15), (signal.SIGTERM, "0", 0, 10), (signal.SIGINT, "5", 0, 4)],
)
def test_an_endpoint_that_is_stopped_under_load_fails_no_request(
    processes, secret, wait_until, signal_number, accept_for_s, shortest_s, longest_s
):
    base = processes.endpoint(env={"STOP_ACCEPTING_AFTER_S": accept_for_s})
    endpoint = processes.started[-1][1]
    assert status_of(base, "/readyz") == (200, None)
    clients = [KeepAliveClient(base, secret, pause_s=0.001 * number) for number in range(CLIENTS)]
    wait_until(lambda: all(client.answered > 3 for client in clients))

    endpoint.send_signal(signal_number)
    started = time.monotonic()
    if shortest_s:
        wait_until(lambda: status_of(base, "/readyz") == (503, "close"), within_s=0.5)
        assert status_of(base, "/livez") == (200, "close")
    assert endpoint.wait(longest_s) == 0
    assert time.monotonic() - started >= shortest_s
    for client in clients:
        client.join(15)
    assert [client.failures for client in clients if client.failures] == []
    assert all(client.closes for client in clients)


def test_a_second_signal_ends_the_endpoint_at_once(processes, secret):
    processes.endpoint(env={"STOP_ACCEPTING_AFTER_S": "60"})
    endpoint = processes.started[-1][1]

    endpoint.send_signal(signal.SIGTERM)
    processes.wait_for_line(endpoint, "The endpoint stops")
    endpoint.send_signal(signal.SIGINT)
    endpoint.wait(3)


def test_a_path_has_one_spelling_and_two_hosts_are_refused(processes, secret):
    base = processes.endpoint()
    address = urlsplit(base)

    def answer_of(method, target, *headers):
        lines = [f"{method} {target} HTTP/1.1", *headers, f"Authorization: Bearer {secret}", "Connection: close"]
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            received = b""
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split()[1]), body and json.loads(body)

    for path in ("/credits/usage", "/livez", "/readyz", "/openapi.json"):
        assert answer_of("GET", path, "Host: a")[0] == 200
        status, refusal = answer_of("GET", path, "Host: a", "Host: b")
        assert (status, refusal["code"]) == (400, "credit.usage.invalid_parameter")
        assert refusal["fields"] == {"Host": "given more than once"}
        assert answer_of("HEAD", path, "Host: a", "Host: a") == (400, b"")
        for other in (
            f"/{path}",
            f"{path}/",
            f"{path}//",
            path[:2] + f"%{ord(path[2]):02x}" + path[3:],
            f"{path}%00",
            f"{path}%20",
            f"/.{path}",
            f"/x/..{path}",
            path.upper(),
            f"{path};a",
            "/" + path[1:].replace("/", "%2F") + "%2F",
        ):
            status, refusal = answer_of("GET", other, "Host: a")
            assert (status, refusal["code"]) == (404, "not_found"), other
            assert answer_of("HEAD", other, "Host: a") == (404, b""), other
    assert answer_of("GET", "/credits//usage", "Host: a")[0] == 404
    assert answer_of("GET", "http://a/credits/usage", "Host: a")[0] == 200


def test_sigterm_for_a_worker_and_its_pool_processes_as_systemd_sends_it_loses_no_event(
    processes, environment, wait_until
):
    worker, schedule = processes.worker(), processes.schedule()
    client, numbers, is_over = connect(environment["REDIS_URL"]), count(), threading.Event()

    def send():
        while not is_over.wait(0.02):
            usages = [f'{{"type":"usage","org_id":"org_a","usage_ref":"u{next(numbers)}",{REST}' for _ in range(50)]
            add(client, [(shard_of("org_a", 8), usage.encode()) for usage in usages])

    sender = threading.Thread(target=send)
    sender.start()
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:

        def posted():
            return connection.execute("SELECT count(*) FROM movements").fetchone()[0]

        wait_until(lambda: posted() > 500)
        for process in (schedule, worker):
            os.killpg(process.pid, signal.SIGTERM)
        for process in (schedule, worker):
            process.wait(20)
        is_over.set()
        sender.join()
        assert processes.worker().poll() is None
        processes.schedule()
        sent = next(numbers)
        wait_until(lambda: posted() == sent, within_s=20)
