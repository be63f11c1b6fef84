"""Does every process refuse an address that cannot be used, and do all reach the same server with one that can?"""

import psycopg
import pytest
import redis

from feeds.keys import create_key
from tests.faults.events_and_pages import read_page
from tests.integration.odd_servers import PASSWORD, QUOTED, cluster_node, valkey_on_a_socket
from worker.intake.sweep import SWEPT
from worker.local.valkey import free_port
from worker.producer import Producer

SECRET = "geheim"
CELERY = ("-m", "celery", "-A", "worker.tasks")
OURS = ("-m", "worker")
BAD = {
    "REDIS_URL": f"redis+sentinel://:{SECRET}@127.0.0.1:26379/master",
    "FEEDS_REDIS_URL": f'"redis://:{SECRET}@127.0.0.1:6379/0"',
    "CELERY_BROKER_URL": f"amqp://user:{SECRET}#1@127.0.0.1:5672//",
    "DATABASE_URL": f"postgresql://user:{SECRET}%1@127.0.0.1:5432/ledger",
}
"""For each variable an address that one process took and another did not, or that appeared in an error."""


def programs(folder):
    """Return the arguments of Python for each process. Two `up` in one folder would exclude each other."""
    folder.mkdir()
    return {
        "worker": (*CELERY, "worker", "--concurrency", "1"),
        "beat": (*CELERY, "beat", "-s", str(folder / "schedule")),
        "serve": (*OURS, "serve", "--port", str(free_port())),
        "up": (*OURS, "up", "--port", str(free_port()), "--state", str(folder / "state")),
        "drain": (*OURS, "drain"),
    }


def test_every_process_refuses_an_unusable_address_in_one_line_without_its_secret(processes, tmp_path):
    started = [
        (variable, processes.start(name, *command, env={variable: address}))
        for variable, address in BAD.items()
        for name, command in programs(tmp_path / variable).items()
    ]
    for variable, process in started:
        assert process.wait(60) == 2, processes.output(process)
        [line] = processes.output(process).strip().splitlines()
        assert line.removeprefix("usage-feeds: ").startswith(f"{variable} is not a valid address: ")
        assert SECRET not in line


def test_every_process_refuses_a_node_of_a_redis_cluster_at_the_start(processes, tmp_path):
    with cluster_node() as url:
        started = [
            (variable, processes.start(name, *command, env={variable: url}))
            for variable in ("REDIS_URL", "FEEDS_REDIS_URL")
            for name, command in programs(tmp_path / variable).items()
        ]
        for variable, process in started:
            assert process.wait(60) == 2, processes.output(process)
            *_, line = processes.output(process).strip().splitlines()  # Celery prints its banner first
            assert f" {variable} leads to a node of a Redis Cluster" in f" {line}"
            assert "Traceback" not in processes.output(process)


@pytest.fixture
def connection(environment):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


def test_all_processes_reach_the_user_and_the_database_of_a_unix_socket(processes, connection, wait_until):
    _, key = create_key(connection, org_id="org_a")
    with valkey_on_a_socket() as (url, client):
        address = {"REDIS_URL": url}
        worker = processes.worker(env=address)
        processes.schedule(env=address)
        base = processes.endpoint(address)
        with Producer(url) as producer:
            producer.usage("org_a", "u0", "ai_usage", 1)
        wait_until(lambda: read_page(base, key) == (200, ["u0"]))
        wait_until(lambda: any(name.startswith(b"feeds:") for name in keys_of(client, 3)))
        wait_until(lambda: SWEPT.encode() in keys_of(client, 3))
        assert keys_of(client, 0) == []
        assert PASSWORD not in processes.output(worker)
        assert QUOTED not in processes.output(worker)


def keys_of(client, db):
    """Return the keys of a database."""
    options = client.get_connection_kwargs()
    with redis.Redis(unix_socket_path=options["path"], password=options["password"], db=db) as other:
        return sorted(other.keys())
