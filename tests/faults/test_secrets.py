"""Fault 31 of tests/README.md: no failure puts a secret into a log, an error or the list of processes."""

from pathlib import Path

import pytest

from feeds.keys import create_key
from tests.faults.events_and_pages import read_page, send, usage

PASSWORD = "secret-word-7d1"


@pytest.fixture
def with_passwords(database_url, redis_relay, postgres_relay):
    """Give an environment whose URLs hold passwords: Valkey's own, and one that Postgres does not ask for."""
    user, _, rest = postgres_relay.database_url.removeprefix("postgresql://").partition("@")
    return {"DATABASE_URL": f"postgresql://{user}:{PASSWORD}@{rest}", "REDIS_URL": redis_relay.redis_url}


def test_no_password_and_no_key_is_printed_or_listed_while_servers_stop_and_start(
    processes, with_passwords, redis_relay, postgres_relay, connection, client, refs, count_waiting, wait_until
):
    password = redis_relay.url.password
    secrets = [PASSWORD, *filter(None, [password])]
    send(client, usage("u0"))
    processes.worker(env=with_passwords)
    processes.schedule(env=with_passwords)
    base = processes.endpoint(with_passwords)
    wait_until(lambda: refs() == ["u0"], within_s=15)
    secret = create_key(connection, org_id="org_a")[1]
    assert read_page(base, secret) == (200, ["u0"])
    listed = command_lines(processes)
    for relay in (postgres_relay, redis_relay):
        before = count_refused_connections(processes)
        relay.shut()
        wait_until(lambda before=before: count_refused_connections(processes) > before, within_s=20)
        read_page(base, secret)
        relay.open()
        send(client, usage(f"after-{relay.port}"))
        wait_until(lambda: count_waiting() == 0, within_s=30)
    printed = "".join(processes.output(process) for _, process, _ in processes.started)
    for word in [*secrets, secret]:
        assert word not in printed
        assert word not in listed


def count_refused_connections(processes):
    """Return how often a process has printed that a server is away: in a drain, in a sweep or when Celery reconnects."""
    return sum(processes.output(process).count("Connection refused") for _, process, _ in processes.started)


def command_lines(processes):
    """Return the command lines of the processes and their children, which every user of the machine can read."""
    pids = [str(process.pid) for _, process, _ in processes.started]
    pids += [child for pid in pids for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)


def test_an_unreachable_server_is_named_without_its_password(processes, environment):
    for name, url in {
        "DATABASE_URL": f"postgresql://someone:{PASSWORD}@127.0.0.1:1/none",
        "REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:1/0",
    }.items():
        for command in (["feed", "org_a"], ["verify"], ["usage", "org_a", "ai_usage", "1"]):
            process = processes.command(*command, env={name: url})
            process.wait(timeout=30)
            assert PASSWORD not in processes.output(process)
        worker = processes.start("worker", "-m", "celery", "-A", "worker.tasks", "worker", env={name: url})
        processes.stop(worker, within_s=10) if name == "REDIS_URL" else worker.wait(timeout=30)
        assert PASSWORD not in processes.output(worker)
