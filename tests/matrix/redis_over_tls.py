"""Do all clients of Redis and of RabbitMQ check certificates alike, and reach the same user and database over TLS?

Not part of `run.py test`: it needs `openssl` and a `redis-server` with TLS (Debian's has it, the embedded Valkey does
not). Run it with `.venv/bin/python -m pytest tests/matrix/redis_over_tls.py`.
"""

import signal
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from urllib.parse import quote

import pytest
import redis
from kombu.exceptions import OperationalError

from feeds.addresses.broker import parse_broker
from feeds.cached.format import FeedsAway
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.worker_connection import WorkerConnection
from tests.integration.odd_servers import is_answering
from tests.servers import server_folder, wait_until
from worker.broker.app import DRAINS, make_app
from worker.broker.waker import RabbitWaker
from worker.intake import streams
from worker.local import children
from worker.local.valkey import bare_environment, free_port
from worker.producer import Producer

PASSWORD = "p@ss/word"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def openssl(folder, *arguments):
    subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)


def make_certificate(folder, name, authority, subject):
    """Make a key and a certificate that an authority has signed, or, without one, an authority."""
    key = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-subj", "/CN=" + name)
    if authority is None:
        openssl(folder, "req", "-x509", *key, "-days", 2, "-out", f"{name}.crt")
        return
    openssl(folder, "req", *key, "-out", f"{name}.csr")
    (folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
    signed = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", f"{name}.ext")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-days", 2, "-out", f"{name}.crt")


@pytest.fixture(scope="module")
def tls():
    """Give the folder of the certificates and the port of a Redis that asks for client certificates."""
    with server_folder() as folder, (folder / "log").open("wb") as log:
        make_certificate(folder, "ca", None, "")
        make_certificate(folder, "other", None, "")
        make_certificate(folder, "server", "ca", "DNS:localhost")
        make_certificate(folder, "client", "ca", "DNS:client")
        port = free_port()
        files = ("--tls-cert-file", "server.crt", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.crt")
        user = ("--user", "ours", "on", f">{PASSWORD}", "~*", "&*", "+@all", "--user", "default", "off")
        command = ("redis-server", "--port", "0", "--tls-port", str(port), *files, *user, "--save", "")
        process = children.start(command, cwd=folder, env=bare_environment() | {"PATH": "/usr/bin:/bin"}, output=log)
        try:
            with streams.connect(address(folder, port)) as client:
                wait_until(lambda: is_answering(client))
            yield folder, port
        except BaseException:
            print((folder / "log").read_text())
            raise
        finally:
            children.stop(process, (signal.SIGTERM,), within_s=10)


def address(folder, port, host="localhost", authority="ca", client="client", options=""):
    """Return an address of database 3."""
    files = {"ssl_ca_certs": authority and f"{authority}.crt", "ssl_certfile": client and f"{client}.crt"}
    files["ssl_keyfile"] = client and f"{client}.key"
    given = "&".join(f"{name}={quote(str(folder / file))}" for name, file in files.items() if file)
    return f"rediss://ours:{quote(PASSWORD, safe='')}@{host}:{port}/3?{given}{options}"


async def reached(url):
    """Return for each client whether it reaches the server."""
    return {
        "streams": reaches_as_stream(url),
        "writer": reaches_as_writer(url),
        "endpoint": await reaches_as_endpoint(url),
        "celery": reaches_as_celery(url),
    }


def reaches_as_stream(url):
    with streams.connect(url) as client:
        return is_answering(client)


def reaches_as_writer(url):
    connection = WorkerConnection(url)
    try:
        return bool(connection.server())
    except FeedsAway:
        return False
    finally:
        connection.close()


async def reaches_as_endpoint(url):
    multiplexer = Multiplexer(url)
    await multiplexer.start()
    try:
        return multiplexer.server is not None
    finally:
        await multiplexer.close()


def reaches_as_celery(url):
    with make_app(url) as app, app.connection_for_write() as connection:  # no pool: kombu's ignores TLS options
        try:
            return bool(connection.ensure_connection(max_retries=0).default_channel.client.ping())
        except OperationalError:
            return False


ALIKE = [
    ({}, True),
    ({"authority": ""}, False),  # a bare rediss:// verifies, and the system does not know the authority
    ({"authority": "other"}, False),
    ({"host": "127.0.0.1"}, False),  # the certificate names localhost only
    ({"host": "127.0.0.1", "options": "&ssl_check_hostname=false"}, True),
    ({"authority": "", "options": "&ssl_cert_reqs=none"}, True),
    ({"authority": "", "options": "&ssl_cert_reqs=CERT_NONE"}, True),
    ({"client": ""}, False),  # the server asks for one
    ({"options": "&ssl_min_version=771&socket_timeout=1&health_check_interval=5"}, True),
    ({"options": "&ssl_ciphers=ECDHE-RSA-AES256-GCM-SHA384"}, True),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("changed", "expected"), ALIKE)
async def test_all_clients_check_certificates_alike(tls, changed, expected):
    assert await reached(address(*tls, **changed)) == dict.fromkeys(
        ("streams", "writer", "endpoint", "celery"), expected
    )


def test_a_producer_adds_and_wakes_as_its_user_in_its_database(tls):
    url = address(*tls)
    with streams.connect(url) as client:
        client.flushall()
        with Producer(url) as producer:
            producer.usage("org_a", "u1", "ai_usage", 1)
        assert (client.xlen("events:{6}"), client.llen(DRAINS)) == (1, 1)
        assert client.execute_command("ACL", "WHOAMI") == b"ours"
        assert {name: facts["keys"] for name, facts in client.info("keyspace").items()} == {"db3": 3}
    with pytest.raises(redis.ConnectionError), Producer(address(*tls, authority="other")) as producer:
        producer.usage("org_a", "u2", "ai_usage", 1)


@pytest.fixture
def amqps(tls):
    """Give the port of a server that does a TLS handshake and notes whether a client trusted it."""
    folder, _ = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    trusted = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError):
                while True:
                    accepted, _ = listening.accept()
                    try:
                        with context.wrap_socket(accepted, server_side=True) as client:
                            trusted.append(client.recv(4) == b"AMQP")
                    except ssl.SSLError:
                        trusted.append(False)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], trusted
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [
        ("localhost", "ssl_ca_certs={}/ca.crt", True),
        ("localhost", "", False),
        ("127.0.0.1", "ssl_ca_certs={}/ca.crt", False),
        ("127.0.0.1", "ssl_ca_certs={}/ca.crt&ssl_check_hostname=false", True),
        ("127.0.0.1", "ssl_cert_reqs=none", True),
    ],
)
def test_a_producer_and_celery_check_the_certificate_of_rabbitmq_alike(tls, amqps, host, options, expected):
    port, trusted = amqps
    url = f"amqps://guest:guest@{host}:{port}//?{options.format(tls[0])}"
    with pytest.raises(Exception):  # noqa: B017 -- the server speaks no AMQP
        RabbitWaker(parse_broker(url)).wake()
    with make_app(url) as app, app.connection_for_write() as connection, pytest.raises(OperationalError):
        connection.ensure_connection(max_retries=0)
    wait_until(lambda: trusted == [expected] * 2)
