"""Fault 31: nothing secret in a log, an error, or the list of processes, whatever fails."""

from pathlib import Path

import pytest

from feeds.keys import create_key
from tests.faults.asks import read, send, usage

HIDDEN = "hidden-word-7d1"


@pytest.fixture
def hiding(database_url, redis_relay, postgres_relay):
    """Give an environment whose addresses hold a password that Postgres does not ask for, and Valkey's own."""
    user, _, rest = postgres_relay.database_url.removeprefix("postgresql://").partition("@")
    return {"DATABASE_URL": f"postgresql://{user}:{HIDDEN}@{rest}", "REDIS_URL": redis_relay.redis_url}


def test_no_password_and_no_key_is_printed_or_listed_while_servers_come_and_go(
    processes, hiding, redis_relay, postgres_relay, connection, client, refs, waiting, wait_until
):
    password = redis_relay.url.password
    secrets = [HIDDEN, *filter(None, [password])]
    send(client, usage("u0"))
    processes.worker(env=hiding)
    processes.schedule(env=hiding)
    base = processes.endpoint(hiding)
    wait_until(lambda: refs() == ["u0"], within_s=15)
    secret = create_key(connection, org_id="org_a")[1]
    assert read(base, secret) == (200, ["u0"])
    listed = command_lines(processes)
    for relay in (postgres_relay, redis_relay):
        before = failed_count(processes)
        relay.shut()
        wait_until(lambda before=before: failed_count(processes) > before, within_s=20)
        read(base, secret)
        relay.open()
        send(client, usage(f"after-{relay.port}"))
        wait_until(lambda: waiting() == 0, within_s=30)
    printed = "".join(processes.output(process) for _, process, _ in processes.started)
    for word in [*secrets, secret]:
        assert word not in printed
        assert word not in listed


def failed_count(processes):
    """Return how often the processes have said that a server is away: a drain, a sweep, or Celery's own reconnecting."""
    return sum(processes.output(process).count("Connection refused") for _, process, _ in processes.started)


def command_lines(processes):
    """Return what everybody on the machine sees of the processes and their children."""
    pids = [str(process.pid) for _, process, _ in processes.started]
    pids += [child for pid in pids for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)


def test_an_unreachable_server_is_named_without_its_password(processes, environment):
    for name, url in {
        "DATABASE_URL": f"postgresql://someone:{HIDDEN}@127.0.0.1:1/none",
        "REDIS_URL": f"redis://:{HIDDEN}@127.0.0.1:1/0",
    }.items():
        for command in (["feed", "org_a"], ["verify"], ["usage", "org_a", "ai_usage", "1"]):
            process = processes.command(*command, env={name: url})
            process.wait(timeout=30)
            assert HIDDEN not in processes.output(process)
        worker = processes.start("worker", "-m", "celery", "-A", "worker.tasks", "worker", env={name: url})
        processes.stop(worker, within_s=10) if name == "REDIS_URL" else worker.wait(timeout=30)
        assert HIDDEN not in processes.output(worker)
