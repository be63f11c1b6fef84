"""Is every address parsed in the same way for all clients, and refused in one line without its secret?"""

import ssl

import pytest
from kombu import Connection
from psycopg.conninfo import conninfo_to_dict
from redis.connection import SSLConnection

from feeds.addresses.broker import parse_broker
from feeds.addresses.postgres import next_host_first, parse_postgres, place_of
from feeds.addresses.redis import RedisAddress, parse_redis
from feeds.addresses.text import BadAddress
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.worker_connection import WorkerConnection
from worker.broker.app import make_app
from worker.intake import streams

REDIS = {
    "redis://": RedisAddress(),
    " redis://redis\r\n": RedisAddress("redis"),
    "redis://h:7000/3": RedisAddress("h", 7000, db=3),
    "redis://h?db=3": RedisAddress("h", db=3),
    "redis://h/2?db=3": RedisAddress("h", db=3),
    "redis://user@h": RedisAddress("h", username="user"),
    "redis://:p%40%2F%23%25@h": RedisAddress("h", password="p@/#%"),
    "redis://u%3A:p@ss:word@h": RedisAddress("h", username="u:", password="p@ss:word"),
    "redis://[::1]:7000/1": RedisAddress("::1", 7000, db=1),
    "unix:///run/redis.sock?db=3": RedisAddress(path="/run/redis.sock", db=3),
    "unix://u:p%2F@/run/a%20b.sock": RedisAddress(path="/run/a b.sock", username="u", password="p/"),
    "redis+socket:///run/redis.sock?virtual_host=3": RedisAddress(path="/run/redis.sock", db=3),
    "rediss://h": RedisAddress("h", tls={"ssl_cert_reqs": "required", "ssl_check_hostname": True}),
    "rediss://h?ssl_cert_reqs=CERT_NONE": RedisAddress("h", tls={"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
    "rediss://h?ssl_cert_reqs=optional&ssl_check_hostname=no": RedisAddress(
        "h", tls={"ssl_cert_reqs": "optional", "ssl_check_hostname": False}
    ),
    "redis://h?socket_timeout=1&health_check_interval=5&client_name=x": RedisAddress(
        "h", limits={"socket_timeout": 1.0, "health_check_interval": 5.0, "client_name": "x"}
    ),
    "redis://h?decode_responses=true&protocol=3&retry_on_timeout=1&max_connections=1": RedisAddress("h"),
    "unix:///run/redis.sock?socket_keepalive=1": RedisAddress(path="/run/redis.sock"),
}
BAD_REDIS = {
    "geheim": "set one like redis://",
    "http://:geheim@h": "set one like redis://",
    '"redis://:geheim@h"': "quotation marks",
    "'redis://:geheim@h'": "quotation marks",
    "redis://:ge heim@h": "blank or a line end",
    "redis://:ge\nheim@h": "blank or a line end",
    "redis://:ge%heim@h": "write %25 for %",
    "redis://:geheim#@h": "%23 for #",
    "redis://:geheim/x@h": "%2F for /",
    "redis://:1/geheim@h": "%2F for /",
    "redis://:geheim?x@h": "%3F for ?",
    "redis://:[geheim@h": "write %25",
    "redis://h:port": "cannot be read",
    "redis://h:99999": "cannot be read",
    "redis://h1:1,h2:2": "write %25",
    "redis://h1,h2": "more than one server",
    "redis://h/geheim": "not a database number",
    "redis://h/-1": "not a database number",
    "redis://h?db=geheim": "not a database number",
    "redis://h?sockettimeout=1": "`sockettimeout`",
    "redis://h?GEHEIM=1": "an option that no client knows",
    "redis://h?socket_timeout=0": "`socket_timeout`",
    "redis://h?socket_timeout=nan": "`socket_timeout`",
    "redis://h?socket_connect_timeout=3600": "`socket_connect_timeout`",
    "redis://h?health_check_interval=-1": "`health_check_interval`",
    "redis://h?ssl_cert_reqs=none": "rediss://",
    "rediss://h?ssl_cert_reqs=geheim": "`ssl_cert_reqs`",
    "rediss://h?ssl_min_version=geheim": "`ssl_min_version`",
    "rediss://h?ssl_ca_certs=/geheim": "No such file or directory",
    "rediss://h?ssl_ca_certs=/dev/null": "check the certificate files",
    "rediss://h?ssl_keyfile=/geheim": "check the certificate files",
    "rediss://h?ssl_ciphers=geheim": "check the certificate files",
    "rediss://h?ssl_validate_ocsp=1": "`ssl_validate_ocsp`",
    "unix://run/redis.sock": "three slashes",
    "unix://": "three slashes",
    "unix:///run/redis.sock?ssl_cert_reqs=none": "`ssl_cert_reqs`",
    "redis+sentinel://:geheim@h:26379/master": "Sentinel is not supported",
    "rediss+sentinel://:geheim@h:26379/master": "Sentinel is not supported",
    "sentinel://:geheim@h:26379": "Sentinel is not supported",
    "redis+cluster://:geheim@h:7000": "Cluster is not supported",
}
POSTGRES = {
    "postgresql://u:p@h/d": "postgresql://u:p@h/d",
    " postgres://u:p@h/d\n": "postgresql://u:p@h/d",
    "postgresql+psycopg://u:p@h/d": "postgresql://u:p@h/d",
    "postgresql://u:p#s?@h/d": "postgresql://u:p#s?@h/d",
    "postgresql://h1:1,h2:2/d": "host=h1,h2 port=1,2 dbname=d target_session_attrs=primary",
    "host=h1,h2 dbname=d": "host=h1,h2 dbname=d target_session_attrs=primary",
    "postgresql://h1,h2/d?target_session_attrs=read-write": "postgresql://h1,h2/d?target_session_attrs=read-write",
    "postgresql://h/d?target_session_attrs=any": "postgresql://h/d?target_session_attrs=any",
    "postgresql://u@/d?host=/tmp/a@b": "postgresql://u@/d?host=/tmp/a@b",
    "host=h dbname=d password='a b'": "host=h dbname=d password='a b'",
}
BAD_POSTGRES = {
    "geheim": "set one like postgresql://",
    "mysql://u:geheim@h/d": "set one like postgresql://",
    "someone:geheim": "set one like postgresql://",
    '"postgresql://u:geheim@h/d"': "quotation marks",
    "postgresql://u:gehe im@h/d": "blank or a line end",
    "postgresql://u:geheim%@h/d": "write %25 for %",
    "postgresql://u:p@geheim@h/d": "%40 for @",
    "postgresql://u:p/geheim@h/d": "%2F for /",
    "postgresql://u@srv:geheim@h/d": "%40 for @",
    "postgresql://h:geheim/d": "port is not a number",
    "postgresql://u:p@h/d?geheim=1": "set one like postgresql://",
    "postgresql://h1,h2/d?target_session_attrs=any": "may lead to a standby",
    "postgresql://h/d?target_session_attrs=prefer-standby": "may lead to a standby",
}
BAD_BROKERS = {
    "sqs://geheim@": "set one like redis://host:6379/0 or amqp://",
    "redis+sentinel://:geheim@h": "Sentinel is not supported",
    "amqp://u:geheim#@h//": "%23 for #",
    "amqp://u:geheim/x@h//": "%2F for /",
    "amqp://u:geheim%@h//": "write %25 for %",
    '"amqp://u:geheim@h//"': "quotation marks",
    "amqp://h//?ssl_ca_certs=/x": "amqps://",
    "amqp://h//?geheim=1": "an option that no client knows",
    "amqp://h1;amqps://h2": "begin alike",
    "amqps://h//?ssl_cert_reqs=geheim": "`ssl_cert_reqs`",
    "amqps://h1;amqps://h2": "ssl_check_hostname=false",
}


@pytest.mark.parametrize(("text", "address"), REDIS.items())
def test_all_clients_of_redis_reach_the_same_server_database_and_user(text, address, monkeypatch):
    assert parse_redis(text) == address

    with streams.connect(text) as client:
        stream = client.connection_pool.make_connection()
    feeds = WorkerConnection(text).pool.make_connection()
    with make_app(text) as app, app.connection_for_write() as connection:
        channel = connection.transport.Channel
        monkeypatch.setattr(channel, "_create_client", lambda *_: None)
        celery = channel._connparams(unconnected(channel, connection))
    kind, celery_db = celery.pop("connection_class"), celery.pop("db")
    taken = {name: celery[name] for name in ("host", "port", "path", "username", "password") if name in celery}

    assert Multiplexer(text).address == address
    assert (stream.db, feeds.db, celery_db) == (address.db,) * 3
    assert type(feeds) is kind
    assert isinstance(stream, kind)
    for name, value in taken.items():
        assert getattr(stream, name) == getattr(feeds, name) == value, name
    if address.tls:
        ours = [(made.cert_reqs, made.check_hostname) for made in (stream, feeds, SSLConnection(**address.tls))]
        made = SSLConnection(**{name: celery[name] for name in celery if name.startswith("ssl_")})
        assert {*ours, (made.cert_reqs, made.check_hostname)} == {ours[0]}
        context = address.tls_context()
        assert (context.verify_mode, context.check_hostname) == ours[0]


def unconnected(channel, connection):
    """Return a channel of kombu that has not connected."""
    made = channel.__new__(channel)
    made.connection = connection.transport
    made._registered = False
    for name, value in connection.transport_options.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("text", ["redis://h?socket_timeout=1", "unix:///run/redis.sock?socket_timeout=1"])
def test_the_options_of_an_address_set_the_limits_of_the_streams_and_of_no_other_client(text):
    with streams.connect(text) as client:
        assert client.connection_pool.make_connection().socket_timeout == 1
    assert WorkerConnection(text).pool.make_connection().socket_timeout == 0.5
    with streams.connect("redis://h") as client:
        made = client.connection_pool.make_connection()
        assert (made.socket_timeout, made.socket_connect_timeout) == (2, 2)


@pytest.mark.parametrize(("text", "address"), POSTGRES.items())
def test_an_address_of_postgres_is_given_to_libpq_as_it_is_meant(text, address):
    parsed = parse_postgres(text)
    assert parsed == address or conninfo_to_dict(parsed) == conninfo_to_dict(address)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("postgresql://u:geheim@h/d", "h:5432/d"),
        ("postgresql://u:geheim@h1:1,h2/d", "h1:1,h2:5432/d"),
        ("host=h1,h2 port=7", "h1:7,h2:7/"),
    ],
)
def test_the_place_of_a_postgres_names_each_host_with_its_port(text, place):
    assert place_of(text) == place


def test_the_next_host_of_an_address_is_tried_first():
    moved = conninfo_to_dict(next_host_first("postgresql://u:p@h1:1,h2,h3:3/d"))
    assert (moved["host"], moved["port"], moved["password"]) == ("h2,h3,h1", ",3,1", "p")
    assert next_host_first("postgresql://u:p@h/d") == "postgresql://u:p@h/d"


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        *((parse_redis, text, words) for text, words in BAD_REDIS.items()),
        *((parse_postgres, text, words) for text, words in BAD_POSTGRES.items()),
        *((parse_broker, text, words) for text, words in BAD_BROKERS.items()),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_in_one_line_without_its_secret(parse, text, words):
    with pytest.raises(BadAddress) as refused:
        parse(text, "THIS_URL")

    message = str(refused.value)
    assert message.startswith("THIS_URL is not a valid address: ")
    assert words in message
    assert "geheim" not in message.lower()
    assert message.isprintable()
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_rabbitmq_keeps_its_nodes_and_checks_certificate_and_host():
    plain = parse_broker("amqp://u:p%2F@h:5672//?heartbeat=10;amqp://u:p@h2//vhost")
    assert (plain.urls, plain.tls) == (("amqp://u:p%2F@h:5672//", "amqp://u:p@h2//vhost"), None)

    assert parse_broker("amqps://h").tls == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h"}
    given = parse_broker("amqps://h//?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k&ssl_check_hostname=false")
    assert given.tls == {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": "/ca", "certfile": "/c", "keyfile": "/k"}
    with make_app("amqp://u:p@h1;amqp://u:p@h2") as app, app.connection_for_read() as connection:
        assert (connection.hostname, connection.alt) == ("h1", ["amqp://u:p@h1", "amqp://u:p@h2"])


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_the_environment_does_not_change_the_broker_that_an_app_was_given(monkeypatch, variable):
    monkeypatch.setenv(variable, "redis://host-of-another-app:1/9")
    with make_app("redis://ours:6379/3") as app:
        for connect in (app.connection, app.connection_for_read, app.connection_for_write):
            with connect() as connection:
                assert isinstance(connection, Connection)
                assert (connection.hostname, connection.virtual_host) == ("ours", "3")
