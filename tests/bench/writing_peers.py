"""With which peers is our posting compared? With programs as their users write them, in `peers/`."""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from celery import Celery
from kombu import Connection as BrokerConnection
from redis import Redis

from tests.bench.backlog import Contender
from tests.bench.environment import PEERS, peers_program
from tests.bench.servers import Servers
from tests.servers import wait_until
from worker.local.children import Process
from worker.local.postgres import embedded_programs

ORGANISATIONS = 1000
CREDITS = 10
QUEUE = "celery"
UNACKED = "unacked"
WORKER = ("worker", "--concurrency", "2", "--loglevel", "warning")
DRAMATIQ_PROCESSES, DRAMATIQ_THREADS = "2", "8"
ENDS_WITHIN_S = 120
POSTED = """
    SELECT
        (SELECT count(*) FROM movements WHERE kind = 'consume'),
        (SELECT count(DISTINCT (org_id, usage_ref)) FROM movements),
        (SELECT sum(movements) FROM organisations),
        (SELECT -sum(credits) FROM movements),
        (SELECT sum(credits - remaining) FROM grants)
"""
DEBITED = """
    SELECT
        (SELECT count(*) FROM nostro.entry WHERE kind = 'consumption'),
        (SELECT count(DISTINCT idempotency_key) FROM nostro.entry WHERE kind = 'consumption'),
        (SELECT -sum(amount) FROM nostro.entry WHERE kind = 'consumption'),
        (SELECT sum(consumed) FROM nostro.credit_lot)
"""


def writing_peers(servers: Servers) -> list[Contender]:
    """Return all peers that this machine can run."""
    on_rabbitmq = [CeleryRabbitNothing()] if servers.amqp_url else []
    databases = [NostroDebit(2), NostroDebit(8), Pgbench(8), Pgbench(16)]
    return [CeleryNothing(), *on_rabbitmq, CeleryTransaction(), DramatiqTransaction(), *databases]


class CeleryNothing:
    """Celery on Redis, with a task that does nothing."""

    name = "Celery on Redis, a task that does nothing"
    events = 2400

    def fill(self, servers: Servers, events: int) -> None:
        self.redis = Redis.from_url(servers.redis_url)
        send(servers.redis_url, "nothing", ((n,) for n in range(events)))

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        return [start_celery(servers, "celery_nothing", "--broker", servers.redis_url)]

    def count_left(self, servers: Servers) -> int:
        return sum(self.redis.pipeline().llen(QUEUE).hlen(UNACKED).execute())

    def check(self, servers: Servers, events: int) -> None:
        check_done(servers.redis_url, "nothing", events)
        self.redis.close()


class CeleryRabbitNothing:
    """Celery on RabbitMQ, with a task that does nothing.

    RabbitMQ does not tell how many messages are delivered and not acknowledged. A worker has eight of them at most: these
    count as done too early, and `check` waits for them.
    """

    name = "Celery on RabbitMQ, a task that does nothing"
    events = 4000

    def fill(self, servers: Servers, events: int) -> None:
        self.broker = BrokerConnection(servers.amqp_url)
        self.channel = self.broker.channel()
        with Celery(broker=servers.amqp_url, set_as_current=False) as app:
            app.amqp.queues[QUEUE].bind(self.channel).declare()
        self.channel.queue_purge(QUEUE)
        send(servers.amqp_url, "nothing", ((n,) for n in range(events)))
        wait_until(lambda: self.count_left(servers) == events)

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        return [start_celery(servers, "celery_nothing", "--broker", servers.amqp_url)]

    def count_left(self, servers: Servers) -> int:
        return self.channel.queue_declare(QUEUE, passive=True).message_count

    def check(self, servers: Servers, events: int) -> None:
        check_done(servers.amqp_url, "nothing", events)
        self.broker.release()


class CountedInPostgres:
    """A contender whose progress is read from Postgres. `done_so_far` selects how many events are committed."""

    done_so_far = "SELECT count(*) FROM movements"
    events: int

    def open_connection(self, servers: Servers) -> None:
        """Open a connection for `count_left`: a new one for each call would cost more than the work that is measured."""
        self.connection = psycopg.connect(servers.database_url, autocommit=True)

    def count_left(self, servers: Servers) -> int:
        [(done,)] = self.connection.execute(self.done_so_far)
        return self.events - done

    def check(self, servers: Servers, events: int) -> None:
        with self.connection:
            [found] = self.connection.execute(POSTED)
        assert found == (events, events, events, CREDITS * events, CREDITS * events), f"{self.name}: {found}"


class CeleryTransaction(CountedInPostgres):
    """Celery on Redis, with a task that posts one event in one transaction."""

    name = "Celery on Redis, one transaction per event"
    events = 1600

    def fill(self, servers: Servers, events: int) -> None:
        make_ledger(servers)
        self.open_connection(servers)
        usages = ((1 + n % ORGANISATIONS, f"usage_{n}", "ai_usage", CREDITS) for n in range(events))
        send(servers.redis_url, "post_usage", usages)

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        return [start_celery(servers, "celery_transaction")]


class DramatiqTransaction(CountedInPostgres):
    """dramatiq on Redis, with an actor that does the same."""

    name = "dramatiq on Redis, one transaction per event"
    events = 3000

    def fill(self, servers: Servers, events: int) -> None:
        make_ledger(servers)
        self.open_connection(servers)
        finish(start(servers, "python", "dramatiq_transaction.py", str(events)))

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        size = ("--processes", DRAMATIQ_PROCESSES, "--threads", DRAMATIQ_THREADS)
        return [start(servers, "dramatiq", "dramatiq_transaction", *size)]


class NostroDebit(CountedInPostgres):
    """hf-nostro, with one call of `debit` per event."""

    done_so_far = "SELECT count(*) FROM nostro.entry WHERE kind = 'consumption'"
    events = 3000

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.name = f"hf-nostro, {processes} processes"

    def fill(self, servers: Servers, events: int) -> None:
        finish(start(servers, "python", "nostro_debit.py", "fill"))
        self.open_connection(servers)

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        self.process = start(servers, "python", "nostro_debit.py", "debit", str(self.processes), str(events))
        return [self.process]

    def check(self, servers: Servers, events: int) -> None:
        finish(self.process)
        with self.connection:
            [found] = self.connection.execute(DEBITED)
        assert found == (events, events, CREDITS * events, CREDITS * events), f"{self.name}: {found}"


class Pgbench(CountedInPostgres):
    """pgbench, with the statements of the transactions above, prepared."""

    done_so_far = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM movements_id_seq"
    events = 12_000

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.name = f"pgbench, {clients} clients"

    def fill(self, servers: Servers, events: int) -> None:
        make_ledger(servers)
        self.open_connection(servers)

    def start(self, servers: Servers, events: int) -> Sequence[Process]:
        assert events % self.clients == 0, "the events must divide evenly among the clients"
        size = ("--client", str(self.clients), "--jobs", "2", "--transactions", str(events // self.clients))
        script = ("--no-vacuum", "--protocol", "prepared", "--define", "n=0", "--file", "posting.pgbench.sql")
        program = str(embedded_programs() / "pgbench")
        self.process = servers.start(program, *size, *script, servers.database_url, cwd=PEERS)
        return [self.process]

    def check(self, servers: Servers, events: int) -> None:
        finish(self.process)
        super().check(servers, events)


def start(servers: Servers, program: str, *arguments: str) -> Process:
    """Start a program of the peers' environment in the folder of their files."""
    return servers.start(peers_program(program), *arguments, cwd=PEERS)


def start_celery(servers: Servers, module: str, *options: str) -> Process:
    """Start a Celery worker with two processes and default settings."""
    return start(servers, "celery", "--app", module, *options, *WORKER)


def finish(process: Process) -> None:
    """Wait until a program has ended with code 0."""
    code = process.wait(ENDS_WITHIN_S)
    assert code == 0, f"{process.args} ended with code {code}"


def make_ledger(servers: Servers) -> None:
    """Create the plain ledger, with its organisations and their grants."""
    with psycopg.connect(servers.database_url) as connection:
        connection.execute((PEERS / "posting.sql").read_bytes())


def send(broker_url: str, task: str, arguments: Iterable[tuple[Any, ...]]) -> None:
    """Send a task once for each of the arguments, over one connection."""
    with Celery(broker=broker_url, set_as_current=False) as app, app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        for of_call in arguments:
            app.send_task(task, of_call, producer=producer, ignore_result=True)


def check_done(broker_url: str, task: str, events: int) -> None:
    """Wait for the last tasks, and raise unless the worker reports that it ran so many."""
    with Celery(broker=broker_url, set_as_current=False) as app:

        def has_run_all() -> bool:
            [stats] = app.control.inspect(timeout=5, limit=1).stats().values()
            assert stats["total"][task] <= events, stats["total"]
            return stats["total"] == {task: events}

        wait_until(has_run_all, within_s=20)
