"""The Redis users of deploy/redis.acl can do their work and nothing else, on Redis and on Valkey."""

import re

import psycopg
import pytest
import redis

from feeds.keys import create_key
from tests.acceptance.test_attack import bearer, request, status_of
from tests.integration.feed_ledger import PROGRAMS, own_server
from tests.servers import CHECKOUT
from worker.broker.app import make_app
from worker.producer import Producer

LINES = (CHECKOUT / "deploy/redis.acl").read_text().splitlines()
REFUSED_TO_ALL = [("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SAVE",), ("MONITOR",)]
REFUSED = {
    "producer": [
        ("XRANGE", "events:{6}", "-", "+"), ("XDEL", "events:{6}", "1-1"), ("DEL", "events:{6}"), ("GET", "feeds:x"), ("SET", "events:{6}", "x"), ("SET", "drains", "x"),
        ("SET", "feeds:x", "y"), ("LRANGE", "drains", "0", "-1"), ("INFO",), ("EVAL", "return 1", "0"),
    ],
    "worker": [("GET", "limits:x"), ("SET", "anything", "y"), ("SHUTDOWN",), ("REPLICAOF", "NO", "ONE")],
    "reader": [
        ("XRANGE", "events:{6}", "-", "+"), ("XADD", "events:{6}", "*", "event", "{}"), ("GET", "events:swept"),
        ("LPUSH", "drains", "x"), ("SET", "anything", "y"), ("EVAL", "return redis.call('GET', 'events:awake')", "0"),
    ],
}  # fmt: skip


@pytest.fixture(params=PROGRAMS)
def admin(request, tmp_path):
    """Give a client with all rights for a server that has the users of the file."""
    with own_server(tmp_path / "redis", request.param) as server, redis.Redis.from_url(server.url) as client:
        for line in LINES[1:]:
            client.execute_command("ACL", "SETUSER", *re.findall(r"\([^)]*\)|\S+", line)[1:])
        client.execute_command("ACL", "LOG", "RESET")
        yield client


def url_of(admin, user):
    port = admin.connection_pool.connection_kwargs["port"]
    return f"redis://{user}:{user.upper()}_PASSWORD@127.0.0.1:{port}/0"


def usage(ref):
    return {"type": "usage", "org_id": "org_a", "usage_ref": ref, "usage_kind": "ai_usage", "credits": 3}


def test_each_program_can_do_its_work_as_its_own_user(processes, environment, admin, wait_until):
    worker = {"REDIS_URL": url_of(admin, "worker")}
    processes.worker(env=worker)
    processes.schedule(env=worker)
    base = processes.endpoint(env={"REDIS_URL": "", "FEEDS_REDIS_URL": url_of(admin, "reader")})
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        key = bearer(create_key(connection, org_id="org_a", rate=1000)[1])

    def page_holds(ref):
        answer = request(base, b"/credits/usage", key)
        assert status_of(answer) == 200
        return ref in answer

    with Producer(url_of(admin, "producer")) as producer:
        producer.send([usage("by_stream")])
        wait_until(lambda: page_holds(b"by_stream"), within_s=10)
        assert page_holds(b"by_stream")
        producer.send([usage("appended")])
        wait_until(lambda: page_holds(b"appended"), within_s=10)
    with make_app(url_of(admin, "producer")) as app:
        app.send_task("events.post", args=[[usage("by_task")]], queue="events")
        wait_until(lambda: page_holds(b"by_task"), within_s=10)
    wait_until(lambda: admin.exists("events:swept"), within_s=10)
    metrics = request(base, b"/metrics")
    assert b'usage_feeds_server_up{server="redis_feeds"} 1.0' in metrics
    assert b'usage_feeds_server_up{server="redis_streams"} 0.0' in metrics
    assert b'usage_feeds_limit_checks_total{at="process"} 0.0' in metrics
    assert b'usage_feeds_limit_checks_total{at="redis"} 0.0' not in metrics
    assert b'usage_feeds_refills_total{outcome="put"} 1.0' in metrics
    assert [(entry["username"], entry["object"], entry["reason"]) for entry in admin.acl_log()] == []


def test_no_user_can_run_the_commands_of_another_or_of_an_administrator(admin):
    for user, commands in REFUSED.items():
        with redis.Redis.from_url(url_of(admin, user)) as client:
            assert client.ping()
            for command in [*REFUSED_TO_ALL, *commands]:
                with pytest.raises(redis.exceptions.ResponseError) as refused:
                    client.execute_command(*command)
                message = str(refused.value).lower()
                assert any(word in message for word in ("permission", "noperm", "can't access")), (
                    user,
                    command,
                    message,
                )


def test_security_md_holds_the_lines_of_the_acl_file():
    described = (CHECKOUT / "SECURITY.md").read_text()
    assert "\n".join(LINES) in described
    assert LINES[0] == "user default off"
