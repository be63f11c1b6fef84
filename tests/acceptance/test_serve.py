import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from feeds.keys import create_key, new_secret
from tests.seed import MIXED, seed
from tests.servers import CHECKOUT, free_port


@pytest.fixture
def connection(environment: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", MIXED * 9)
        yield connection


@pytest.fixture
def secret(connection: psycopg.Connection[Any]) -> str:
    return create_key(connection, org_id="org_a")[1]


def send(base, raw_request):
    """Send bytes and return status, headers and body of what arrives until the connection is closed."""
    address = urlsplit(base)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(raw_request)
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return (
        int(status.split()[1]),
        {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)},
        body,
    )


def request(base, secret, target=b"/credits/usage", *headers, method=b"GET"):
    """Send a request with a key, and return status, headers and body."""
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: here", b"Connection: close", *headers]
    if secret:
        lines.append(b"Authorization: Bearer " + secret.encode())
    return send(base, b"\r\n".join(lines) + b"\r\n\r\n")


def run_command(environment, *arguments):
    command = [sys.executable, "-m", "worker", *arguments]
    return subprocess.run(
        command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )


def test_malformed_requests_get_the_documented_codes(processes, secret):
    base = processes.endpoint()

    def answer_of(target, *headers, key=secret):
        status, _, body = request(base, key, target, *headers)
        return status, body.partition(b'"code":"')[2].partition(b'"')[0].decode()

    usage = b"/credits/usage"
    assert answer_of(usage) == (200, "")
    assert answer_of(usage + b"?") == (200, "")
    assert answer_of(usage + b"?kind=%") == (400, "credit.usage.invalid_filter")
    assert answer_of(usage + b"?kind=%zz") == (400, "credit.usage.invalid_filter")
    assert answer_of(usage + b"?kind=%ff%fe") == (400, "credit.usage.invalid_filter")
    assert answer_of(usage + b"?kind=%00") == (400, "credit.usage.invalid_filter")
    assert answer_of(usage + b"?page=%C2%B2") == (400, "credit.usage.invalid_page")
    assert answer_of(usage + b"?cursor=" + b"A" * 5000) == (400, "credit.usage.invalid_page")
    assert answer_of(usage + b"?%ff=1") == (400, "credit.usage.invalid_parameter")
    assert answer_of(usage + b"?" + b"a&" * 5000) == (400, "credit.usage.invalid_parameter")
    assert answer_of(usage, b"X-Org-ID: org_a", b"X-Org-ID: org_b") == (400, "credit.usage.invalid_parameter")
    assert answer_of(usage, b"X-Org-ID: \xff\xfe") == (403, "authorize.forbidden")
    assert answer_of(usage, b"X-Org-ID: " + b"o" * 5000) == (403, "authorize.forbidden")
    assert answer_of(usage, key=None) == (401, "credit.handler.identity_missing")
    assert answer_of(usage, b"Authorization: Bearer \xff\xfe", key=None) == (401, "credit.handler.identity_missing")
    assert answer_of(usage, b'If-None-Match: \xff,,"', key=secret) == (200, "")
    assert answer_of(b"/credits/%75sage") == (404, "not_found")
    assert answer_of(b"/credits/usage%00") == (404, "not_found")
    assert answer_of(b"/credits/%ff")[0] in {400, 404}
    for nonsense in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ):
        status, _, _ = send(base, nonsense)
        assert 400 <= status < 500
    assert answer_of(usage) == (200, "")


def test_head_and_304_carry_no_body_on_the_wire(processes, secret):
    base = processes.endpoint()
    _, get_headers, body = request(base, secret)

    status, head_headers, nothing = request(base, secret, method=b"HEAD")
    assert (status, nothing, head_headers["content-length"]) == (200, b"", str(len(body)))
    assert head_headers["etag"] == get_headers["etag"]
    for etag in (get_headers["etag"].encode(), b"*"):
        status, unchanged, nothing = request(base, secret, b"/credits/usage", b"If-None-Match: " + etag)
        assert (status, nothing, unchanged["etag"]) == (304, b"", get_headers["etag"])
        assert unchanged["vary"] == "Authorization, X-Org-ID"


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_endpoint_with_code_0_while_clients_are_connected(processes, secret, signal_number):
    base = processes.endpoint()
    with socket.create_connection((urlsplit(base).hostname, urlsplit(base).port)) as idle:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")

        assert processes.stop(processes.started[-1][1], signal_number, within_s=5) == 0


def test_a_killed_endpoint_leaves_no_process_behind(processes, secret, wait_until):
    processes.endpoint()
    [(_, process, _)] = processes.started
    os.kill(process.pid, signal.SIGKILL)
    process.wait(5)

    def is_gone():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone, within_s=2)


def test_an_endpoint_that_cannot_start_says_why_in_one_line_with_exit_code_2(environment, connection):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = {
            "cannot be used": (environment, str(taken.getsockname()[1])),
            "EVENT_SHARDS is 4 here": ({**environment, "EVENT_SHARDS": "4"}, "0"),
            "Connection refused": ({**environment, "DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/d"}, "0"),
            "No address of Postgres is set": ({**environment, "DATABASE_URL": ""}, "0"),
        }
        for words, (variables, port) in cases.items():
            ended = run_command(variables, "serve", "--port", port if port != "0" else str(free_port()))
            assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
            assert ended.stderr.count("\n") == 1
            assert words in ended.stderr
            assert "hidden" not in ended.stderr


def test_the_endpoint_answers_within_two_seconds_while_postgres_hangs_and_serves_pages_when_it_returns(
    processes, connection, secret, environment, wait_until
):
    base = processes.endpoint()
    uncached = b"/credits/usage?kind=expire"
    page = request(base, secret)
    assert page[0] == 200
    backends = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'usage-feeds endpoint' AND datname = current_database()"
    ).fetchall()
    assert backends
    with psycopg.connect(environment["DATABASE_URL"]) as locking:
        locking.execute("LOCK TABLE movements IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            started = time.monotonic()
            status, _, body = request(base, secret, uncached)
            assert status == 500
            assert b"credit.usage.failed" in body
            assert time.monotonic() - started < 2
        assert request(base, secret)[2] == page[2]
        assert request(base, None)[0] == 401
    wait_until(lambda: request(base, secret, uncached)[0] == 200, within_s=5)


def test_the_endpoint_prints_no_secret(processes, secret):
    base = processes.endpoint()
    wrong = new_secret()
    for key in (secret, wrong):
        request(base, key, b"/credits/usage?page=0")
        request(base, key)
    [(_, process, _)] = processes.started

    assert secret not in processes.output(process)
    assert wrong not in processes.output(process)


def test_a_key_that_a_command_creates_is_accepted_until_a_command_revokes_it(
    processes, connection, environment, wait_until
):
    base = processes.endpoint()
    made = run_command(environment, "keys", "create", "--org", "org_a")
    secret = made.stdout.splitlines()[-1]
    key_id = made.stdout.split()[0]
    assert request(base, secret)[0] == 200

    listed = run_command(environment, "keys", "list")
    assert key_id in listed.stdout
    assert secret not in listed.stdout
    assert run_command(environment, "keys", "revoke", key_id).returncode == 0
    wait_until(lambda: request(base, secret)[0] == 401, within_s=10)
    assert run_command(environment, "keys", "revoke", "key_01m82e32vje6fafh92ny8s9bwx").returncode == 1
    assert run_command(environment, "keys", "revoke", "nonsense").returncode == 2


def test_a_member_that_a_command_sets_can_read_until_a_command_removes_it(
    processes, connection, environment, wait_until
):
    base = processes.endpoint()
    secret = run_command(environment, "keys", "create", "--user", "ann@example.com").stdout.splitlines()[-1]
    assert request(base, secret, b"/credits/usage", b"X-Org-ID: org_a")[0] == 403

    assert run_command(environment, "members", "set", "org_a", "ann@example.com", "billing").returncode == 0
    wait_until(lambda: request(base, secret, b"/credits/usage", b"X-Org-ID: org_a")[0] == 200, within_s=5)
    assert run_command(environment, "members", "remove", "org_a", "ann@example.com").returncode == 0
    wait_until(lambda: request(base, secret, b"/credits/usage", b"X-Org-ID: org_a")[0] == 403, within_s=11)
    assert run_command(environment, "members", "remove", "org_a", "ann@example.com").returncode == 1
