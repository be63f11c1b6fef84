"""An event comes in by each door, its page goes out, and `verify` finds no difference: once in each of the surroundings.

Not part of `run.py test`: `.ci/run matrix` installs what it needs, then runs
`.venv/bin/python -m pytest tests/matrix/acceptance_path.py`.
"""

import json
import os
import shutil
import subprocess
from urllib.request import Request, urlopen

import pytest
import redis
from celery import Celery

from tests.faults import rabbitmq
from tests.matrix.surroundings import guarded_redis, is_empty, make_hostile, pgbouncer
from tests.servers import CHECKOUT, server_folder, wait_until
from worker.intake.streams import connect, place
from worker.producer import Producer

ORG = "org_a"


def usage(ref):
    return {"type": "usage", "org_id": ORG, "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1}


def send_by_every_door(processes, environment, streams_url, broker_url):
    """Send one event through each door; returns their refs, in any order."""
    with connect(streams_url) as streams:
        shard, raw = place(usage("by_xadd"), 8)
        streams.xadd(f"events:{{{shard}}}", {"event": raw})
    with Producer(streams_url, broker_url=broker_url, event_shards=8) as producer:
        producer.usage(ORG, "by_producer", "ai_usage", 1)
    options = {"broker_use_ssl": True} if broker_url.startswith("rediss") else {}
    with Celery("host", broker=broker_url) as app:
        app.conf.update(task_create_missing_queue_type="quorum", broker_transport_options={"confirm_publish": True})
        app.conf.update({name: value for name, value in options.items() if "?" not in broker_url})
        app.send_task("events.post", args=[[usage("by_celery")]], queue="events")
    command = processes.command("usage", ORG, "ai_usage", "1", "--ref", "by_command", env=environment)
    assert command.wait(timeout=30) == 0
    return {"by_xadd", "by_producer", "by_celery", "by_command"}


def read_page(base, secret):
    with urlopen(Request(f"{base}/credits/usage", headers={"Authorization": f"Bearer {secret}"}), timeout=5) as answer:
        return {item["usage_ref"] for item in json.load(answer)["items"]}


def go(processes, environment, reader=None, producer=None):
    """Migrate, start all processes, send by every door, read the page, and verify."""
    commands = [("migrate",), ("keys", "create", "--org", ORG)]
    for arguments in commands:
        command = processes.command(*arguments, env=environment)
        assert command.wait(timeout=60) == 0, processes.output(command)
    secret = processes.output(command).splitlines()[-1]
    worker, schedule = processes.worker(env=environment), processes.schedule(env=environment)
    base = processes.endpoint(env=environment | (reader or {}))
    streams_url = producer or environment["REDIS_URL"]
    broker_url = producer or environment.get("CELERY_BROKER_URL") or streams_url
    refs = send_by_every_door(processes, environment, streams_url, broker_url)
    wait_until(lambda: read_page(base, secret) == refs, within_s=20)
    # Events may be on the page before the first sweep, and until then `health` fails.
    wait_until(lambda: processes.command("health", env=environment).wait(timeout=60) == 0, within_s=20)
    for arguments in (("verify",), ("dead", "list")):
        command = processes.command(*arguments, env=environment)
        assert command.wait(timeout=60) == 0, processes.output(command)
    assert processes.output(command).strip() == "No dead letters."
    doctor = processes.command("doctor", env=environment)
    assert doctor.wait(timeout=60) in {0, 1}, processes.output(doctor)  # it may find what to mend
    assert "Traceback" not in processes.output(doctor)
    assert (worker.poll(), schedule.poll()) == (None, None)
    return base, secret


@pytest.fixture
def folder():
    with server_folder() as made:
        yield made


def test_embedded_servers_and_this_python(processes, environment):
    go(processes, environment)


def test_postgres_through_pgbouncer_in_transaction_mode(processes, environment, folder):
    with pgbouncer(folder / "pgbouncer", environment["DATABASE_URL"]) as url:
        go(processes, environment | {"DATABASE_URL": url})


def test_a_hostile_database(processes, environment):
    make_hostile(environment["DATABASE_URL"])
    go(processes, environment)


def test_redis_with_tls_client_certificates_users_a_socket_and_a_database_number(processes, environment, folder):
    with guarded_redis(folder / "redis") as urls:
        reader = {"FEEDS_REDIS_URL": urls["reader"]}
        go(processes, environment | {"REDIS_URL": urls["worker"]}, reader, urls["producer"])
        assert is_empty(urls["admin"])


def test_rabbitmq_as_the_broker(processes, environment, folder):
    with (folder / "log").open("wb") as log:
        server = rabbitmq.start(folder / "rabbitmq", log)
        try:
            go(processes, environment | {"CELERY_BROKER_URL": server.url})
        finally:
            server.stop()


def test_producers_of_other_languages(processes, environment, folder):
    """deploy/examples, as they are."""
    base, secret = go(processes, environment)
    npm, node = shutil.which("npm"), shutil.which("node")
    subprocess.run([npm, "install", "--silent", "--prefix", folder, "redis@5"], check=True, timeout=120)
    shutil.copy(CHECKOUT / "deploy/examples/stream.mjs", folder)
    with redis.Redis.from_url(environment["REDIS_URL"]):
        for command in ([node, folder / "stream.mjs"], ["sh", CHECKOUT / "deploy/examples/stream.sh"]):
            subprocess.run(command, check=True, timeout=30, env={**os.environ, "REDIS_URL": environment["REDIS_URL"]})
    wait_until(lambda: {"usage_3", "usage_4"} <= read_page(base, secret), within_s=20)
