"""The endpoint under attack: no answer is a 500 or holds data of another organisation, and no log holds a secret."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote_from_bytes, urlsplit

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeds.keys import create_key, new_secret, revoke_key, set_member
from tests.seed import MIXED, seed
from worker.commands.serve import AT_ONCE, HEADERS_WITHIN_MS
from worker.intake.streams import stream_of
from worker.producer import Producer

PATH = b"/credits/usage"
FOREIGN = "quiet_neighbour"
HOSTILE = [
    b"", b"0", b"-1", b"1e9", b"2147483648", b"99999999999999999999", b"NaN", b"null", b"true", b"\xc2\xb2", b"\xff\xfe",
    b"\x00", b"'", b"' OR 1=1 --", b"'; DROP TABLE movements; --", b"../../etc/passwd", b"%s%n", b"${jndi:x}", b"{{7*7}}",
    b"<script>", b"all", b"org_a", FOREIGN.encode(), b"ai_usage", b"consume", b"A" * 3000,
]  # fmt: skip
NAMES = [b"kind", b"usage_kind", b"page", b"limit", b"cursor", b"org_id", b"X-Org-ID", b"kind[]", b"__proto__", b""]


@pytest.fixture
def connection(environment):
    """Give a connection to a ledger with movements of `org_a` and of another organisation."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", MIXED * 9)
        seed(connection, FOREIGN, MIXED * 20)
        yield connection


def exchange(base, raw_request, within_s=10.0):
    """Send these bytes, and return what comes back until the connection ends."""
    address = urlsplit(base)
    received = b""
    with socket.create_connection((address.hostname, address.port), timeout=within_s) as connection:
        try:
            connection.sendall(raw_request)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:  # the request was refused before all of it was sent
            pass
    return received


def request(base, target, *headers, method=b"GET"):
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: here", b"Connection: close", *headers]
    return exchange(base, b"\r\n".join(lines) + b"\r\n\r\n")


def bearer(secret):
    return b"Authorization: Bearer " + secret.encode()


def status_of(answer):
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split()[1])


def cursor_of(base, secret):
    """Return the cursor of the next page."""
    answer = request(base, PATH + b"?limit=3", bearer(secret))
    return answer.partition(b'"next_cursor":"')[2].partition(b'"')[0]


def forge(cursor, index, byte):
    """Return a cursor with one character changed."""
    index %= len(cursor)
    return cursor[:index] + bytes([byte]) + cursor[index + 1 :]


def test_no_request_gets_a_500_or_a_byte_of_another_organisation(processes, connection):
    base = processes.endpoint()
    own, foreign = create_key(connection, org_id="org_a")[1], create_key(connection, org_id=FOREIGN)[1]
    person = create_key(connection, user_id="ann")[1]
    set_member(connection, "org_a", "ann", "owner")
    set_member(connection, FOREIGN, "ann", "member")
    foreign_page = request(base, PATH + b"?limit=100", bearer(foreign))
    foreign_ids = {part.partition(b'"')[0] for part in foreign_page.split(b'"id":"')[1:]}
    assert len(foreign_ids) == 100
    cursors = [cursor_of(base, own), cursor_of(base, foreign)]
    assert all(cursors)
    values = st.one_of(
        st.sampled_from([*HOSTILE, *cursors]),
        st.builds(forge, st.sampled_from(cursors), st.integers(0, 200), st.integers(33, 126)),
        st.binary(max_size=40),
    )
    queries = st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=4)
    text = st.binary(max_size=60).map(lambda raw: bytes(byte for byte in raw if byte not in b"\r\n\0"))
    header_names = st.sampled_from(
        [b"X-Org-ID", b"If-None-Match", b"Authorization", b"Cookie", b"X-Forwarded-For", b"Range"]
    )
    headers = st.lists(st.builds(lambda name, value: name + b": " + value, header_names, st.one_of(text, values.map(quote_from_bytes).map(str.encode))), max_size=4)  # fmt: skip
    of_foreign = b"X-Org-ID: " + FOREIGN.encode()
    keys = st.sampled_from(
        [[bearer(own)], [bearer(person)], [bearer(own), of_foreign], [bearer(person), of_foreign], []]
    )
    methods = st.sampled_from([b"GET"] * 8 + [b"HEAD", b"POST", b"OPTIONS", b"TRACE", b"BREW"])

    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(queries, headers, keys, methods)
    def attack(query, more, key, method):
        target = PATH + b"?" + b"&".join(quote_from_bytes(name).encode() + b"=" + quote_from_bytes(value).encode() for name, value in query)  # fmt: skip
        answer = request(base, target, *key, *more, method=method)
        assert 200 <= status_of(answer) < 500, answer
        assert not [one for one in foreign_ids if one in answer]
        assert FOREIGN.encode() not in answer

    attack()
    assert status_of(request(base, PATH, bearer(own))) == 200
    assert "Traceback" not in processes.output(processes.started[0][1])


def test_a_request_that_is_too_large_is_refused_before_it_is_read(processes, connection):
    base = processes.endpoint()
    own = bearer(create_key(connection, org_id="org_a")[1])
    large = {
        "address": request(base, PATH + b"?cursor=" + b"A" * 70_000, own),
        "header": request(base, PATH, own, b"X-Large: " + b"x" * 70_000),
        "headers": request(base, PATH, own, *[b"X-%d: 1" % number for number in range(500)]),
    }
    for name, answer in large.items():
        assert answer == b"" or 400 <= status_of(answer) < 500, name
    announced = exchange(base, b"POST %b HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 10000000000\r\n\r\n" % PATH)  # fmt: skip
    assert status_of(announced) == 405
    assert status_of(request(base, PATH + b"?kind=" + b"x" * 20_000, own)) == 400
    assert status_of(request(base, PATH, own)) == 200


def test_idle_incomplete_and_slow_connections_do_not_keep_others_out(processes, connection):
    base = processes.endpoint()
    own = bearer(create_key(connection, org_id="org_a")[1])
    address = (urlsplit(base).hostname, urlsplit(base).port)
    with ExitStack() as held:
        idle = [held.enter_context(socket.create_connection(address, timeout=5)) for _ in range(AT_ONCE + 50)]
        for connected in idle[::2]:
            connected.sendall(b"GET /credits/usage HTTP/1.1\r\nHost: he")
        dripping, began = idle[0], time.monotonic()
        waits = held.enter_context(socket.create_connection(address, timeout=1))
        waits.sendall(b"GET %b HTTP/1.1\r\nHost: here\r\nConnection: close\r\n%b\r\n\r\n" % (PATH, own))
        answer = b""
        while not answer and time.monotonic() - began < 2.5 * HEADERS_WITHIN_MS / 1000:
            try:
                answer = waits.recv(65536)
            except TimeoutError:
                try:
                    dripping.sendall(b"x")
                except OSError:
                    dripping = waits
        assert status_of(answer) == 200


def grep(processes, words):
    """Return which of the words are in the log or in the arguments of which process."""
    found = []
    for name, process, log in processes.started:
        text = log.read_bytes()
        arguments = Path(f"/proc/{process.pid}/cmdline")
        text += arguments.read_bytes() if arguments.exists() else b""
        found += [(name, word) for word in words if word.encode() in text]
    return found


def test_no_log_holds_a_key_a_secret_or_data_of_an_organisation(
    processes, connection, environment, redis_url, wait_until
):
    worker, base = processes.worker(), processes.endpoint()
    processes.schedule()
    own, revoked, unknown = (
        create_key(connection, org_id="org_a")[1],
        create_key(connection, org_id="org_a"),
        new_secret(),
    )
    revoke_key(connection, revoked[0].key_id)
    cursor = cursor_of(base, own).decode()
    with Producer(redis_url) as producer, redis.Redis.from_url(redis_url) as streams:
        producer.grant(FOREIGN, "secret_grant", 5, "plan")
        producer.usage(FOREIGN, "secret_usage", "ai_usage", 7)
        producer.usage(FOREIGN, "secret_usage", "ai_usage", 8)
        producer.revoke(FOREIGN, "secret_never")
        for raw in (b"secret_garbage", b'{"type":"usage","org_id":"%b","secret_field":1}' % FOREIGN.encode(), b"\xff"):
            streams.xadd(stream_of(1), {"event": raw})

        def dead():
            return connection.execute("SELECT count(*) FROM dead_letters").fetchone()[0] == 5

        wait_until(dead, within_s=10)
        for secret in (own, revoked[1], unknown):
            for target in (
                PATH,
                PATH + b"?cursor=" + cursor.encode(),
                PATH + b"?page=secret_page&x=" + FOREIGN.encode(),
            ):
                request(base, target, bearer(secret), b"X-Org-ID: " + FOREIGN.encode())
                request(base, target, bearer(secret))
        with connection.transaction():
            connection.execute("ALTER TABLE movements RENAME TO gone")
        producer.usage(FOREIGN, "secret_later", "ai_usage", 1)
        assert status_of(request(base, PATH + b"?kind=revoke", bearer(own))) == 500
        processes.wait_for_line(worker, "ended early", within_s=15)
        connection.execute("ALTER TABLE gone RENAME TO movements")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        streams.flushall()
        producer.usage(FOREIGN, "secret_last", "ai_usage", 1)
        wait_until(
            lambda: b"secret_last" in request(base, PATH, bearer(create_key(connection, org_id=FOREIGN)[1])),
            within_s=15,
        )

    password = urlsplit(redis_url).password
    [(cursor_secret,)] = connection.execute("SELECT cursor_secret FROM ledger").fetchall()
    words = [
        own,
        revoked[1],
        unknown,
        cursor,
        cursor_secret.hex(),
        FOREIGN,
        "org_a",
        "secret_",
        *([password] if password else []),
    ]
    words += [secret[4:20] for secret in (own, revoked[1], unknown)]
    assert grep(processes, words) == []
    assert grep(processes, [" ready."]) != []
