"""Which processes does `up` start on this machine, and at which addresses?"""

import os
import socket
import sys
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM
from urllib.request import urlopen

import psycopg
from psycopg import sql

from feeds.database import READING, begin, connect
from feeds.schema import UnusableSetup, read_ledger
from feeds.settings import reader_settings
from worker.broker.start import refuse_clusters
from worker.intake import streams
from worker.local import postgres, valkey
from worker.local.supervisor import Supervisor
from worker.migrations.runner import migrate
from worker.settings import worker_settings

HOST = "127.0.0.1"
DATABASE = "usage_feeds"
ENDPOINT_ANSWERS_WITHIN_S = 10.0
"""How long the endpoint may take to stop, after it has ceased to accept connections."""
SINGLE_WORKER_OPTIONS = ("--without-mingle", "--without-gossip")
"""`up` runs the only worker of its broker. A search for other workers would delay its start by a second."""


class PortInUse(UnusableSetup):
    """Another program listens on the endpoint's port. Stop it, or choose another port."""


def require_port(port: int) -> None:
    """Raise PortInUse unless the endpoint can listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUse(f"Port {port} cannot be used ({error.strerror}): choose another with --port.") from None


def start_servers(supervisor: Supervisor, state: Path) -> None:
    """Start Postgres and Valkey and put their addresses into the environment.

    A server whose address is already in the environment is not started. Raises ValidationError if it cannot be read.
    """
    worker_settings()
    if not os.environ.get("DATABASE_URL", "").strip():
        supervisor.report("starting Postgres")
        with supervisor.output_pipe("postgres") as output:
            server = postgres.start_postgres(state / "postgres", output, idle=supervisor.forward_output)
        supervisor.add_server(
            "postgres", server.process, postgres.SIGNALS, clean_up=lambda: postgres.remove_socket_folder(server.home)
        )
        os.environ["DATABASE_URL"] = create_database(server.url)
    if not os.environ.get("REDIS_URL", "").strip():
        supervisor.report("starting Valkey")
        with supervisor.output_pipe("valkey") as output:
            process, url = valkey.start_valkey(state / "valkey", output, idle=supervisor.forward_output)
        supervisor.add_server("valkey", process, valkey.SIGNALS)
        os.environ["REDIS_URL"] = url
    worker_settings.cache_clear()
    reader_settings.cache_clear()


def create_database(server_url: str) -> str:
    """Create our database if it does not exist, and return its URL."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        if not found:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    head, question_mark, query = server_url.partition("?")
    return f"{head.rpartition('/')[0]}/{DATABASE}{question_mark}{query}"


def prepare_ledger() -> None:
    """Check that Redis answers, bring the schema up to date, and put the ledger's facts into the environment.

    So a second `up` needs no settings that the first one recorded in the ledger.
    """
    settings = worker_settings()
    refuse_clusters()
    with streams.connect(settings.redis_url) as client:
        client.ping()
    with connect(settings.database_url, timeout_s=5) as connection:
        migrate(connection, settings)
        with begin(connection, READING), connection.cursor() as cursor:
            ledger = read_ledger(cursor)
    assert ledger
    os.environ["EVENT_SHARDS"] = str(ledger.event_shards)
    os.environ["USAGE_KINDS"] = ",".join(ledger.usage_kinds)
    os.environ["EXPIRY_GRACE_S"] = str(ledger.expiry_grace_s)
    worker_settings.cache_clear()
    reader_settings.cache_clear()


def start_processes(supervisor: Supervisor, state: Path, port: int) -> None:
    """Start worker, endpoint and schedule, and wait until the first two are ready."""
    quiet = ("-W", "ignore:You're running the worker with superuser privileges")  # it does if `up` runs as root
    celery = ("-m", "celery", "-A", "worker.tasks")
    worker = supervisor.start(
        "worker",
        python(*quiet, *celery, "worker", "--concurrency", "2", "--loglevel", "info", *SINGLE_WORKER_OPTIONS),
        signals=(SIGTERM, SIGQUIT),
        within_s=15,
    )
    endpoint = supervisor.start(
        "endpoint",
        python("-m", "worker", "serve", "--port", str(port)),
        signals=(SIGTERM,),
        within_s=reader_settings().stop_accepting_after_s + ENDPOINT_ANSWERS_WITHIN_S,
        hurry=SIGINT,
    )
    supervisor.wait_until_ready(worker, lambda: supervisor.has_printed("worker", b" ready."))
    supervisor.wait_until_ready(endpoint, lambda: is_answering(endpoint_url(port) + "/livez"))
    schedule_file = str(state / "beat-schedule")
    supervisor.start("schedule", python(*celery, "beat", "-s", schedule_file), signals=(SIGTERM,), within_s=5)


def start_demo(supervisor: Supervisor) -> None:
    """Start the demo's traffic, and wait until its history is sent."""
    demo = supervisor.start("demo", python("-m", "worker.local.demo"), signals=(SIGTERM, SIGKILL), within_s=2)
    supervisor.wait_until_ready(demo, lambda: supervisor.has_printed("demo", b"history"))


def endpoint_url(port: int) -> str:
    """Return the endpoint's base URL."""
    return f"http://{HOST}:{port}"


def python(*arguments: str) -> list[str]:
    """Return the command that runs the Python of this process."""
    return [sys.executable, *arguments]


def is_answering(url: str) -> bool:
    """Return whether a URL is answered with 200."""
    try:
        with urlopen(url, timeout=1) as answer:  # noqa: S310 -- our own http URL
            return bool(answer.status == 200)
    except OSError:
        return False
