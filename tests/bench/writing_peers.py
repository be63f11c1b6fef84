"""Whom does our writing race against? Peers as their users write them: the programs in `peers/`."""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from celery import Celery
from kombu import Connection as Broker
from redis import Redis

from tests.bench.environment import PEERS, peers_program
from tests.bench.ground import Ground
from tests.bench.race import Contender
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


def writing_peers(ground: Ground) -> list[Contender]:
    """Return all peers that this machine can run."""
    on_rabbit = [CeleryRabbitNothing()] if ground.amqp_url else []
    databases = [NostroDebit(2), NostroDebit(8), Pgbench(8), Pgbench(16)]
    return [CeleryNothing(), *on_rabbit, CeleryTransaction(), DramatiqTransaction(), *databases]


class CeleryNothing:
    """Celery on Redis, and a task that does nothing."""

    name = "Celery on Redis, a task that does nothing"
    events = 2400

    def fill(self, ground: Ground, events: int) -> None:
        self.redis = Redis.from_url(ground.redis_url)
        send(ground.redis_url, "nothing", ((n,) for n in range(events)))

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        return [start_celery(ground, "celery_nothing", "--broker", ground.redis_url)]

    def left(self, ground: Ground) -> int:
        return sum(self.redis.pipeline().llen(QUEUE).hlen(UNACKED).execute())

    def check(self, ground: Ground, events: int) -> None:
        check_done(ground.redis_url, "nothing", events)
        self.redis.close()


class CeleryRabbitNothing:
    """Celery on RabbitMQ, and a task that does nothing.

    RabbitMQ does not tell how many messages are out, unacknowledged: a worker's eight are counted as done, as is
    their time, and `check` waits for them.
    """

    name = "Celery on RabbitMQ, a task that does nothing"
    events = 4000

    def fill(self, ground: Ground, events: int) -> None:
        self.broker = Broker(ground.amqp_url)
        self.channel = self.broker.channel()
        with Celery(broker=ground.amqp_url, set_as_current=False) as app:
            app.amqp.queues[QUEUE].bind(self.channel).declare()
        self.channel.queue_purge(QUEUE)
        send(ground.amqp_url, "nothing", ((n,) for n in range(events)))
        wait_until(lambda: self.left(ground) == events)

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        return [start_celery(ground, "celery_nothing", "--broker", ground.amqp_url)]

    def left(self, ground: Ground) -> int:
        return self.channel.queue_declare(QUEUE, passive=True).message_count

    def check(self, ground: Ground, events: int) -> None:
        check_done(ground.amqp_url, "nothing", events)
        self.broker.release()


class Counted:
    """What is watched in Postgres: `done_so_far` says how many events are committed."""

    done_so_far = "SELECT count(*) FROM movements"
    events: int

    def watch(self, ground: Ground) -> None:
        """Keep a connection for `left`, which would else cost more than what it watches."""
        self.connection = psycopg.connect(ground.database_url, autocommit=True)

    def left(self, ground: Ground) -> int:
        [(done,)] = self.connection.execute(self.done_so_far)
        return self.events - done

    def check(self, ground: Ground, events: int) -> None:
        with self.connection:
            [found] = self.connection.execute(POSTED)
        assert found == (events, events, events, CREDITS * events, CREDITS * events), f"{self.name}: {found}"


class CeleryTransaction(Counted):
    """Celery on Redis, and a task that posts one event in one transaction."""

    name = "Celery on Redis, one transaction per event"
    events = 1600

    def fill(self, ground: Ground, events: int) -> None:
        make_ledger(ground)
        self.watch(ground)
        usages = ((1 + n % ORGANISATIONS, f"usage_{n}", "ai_usage", CREDITS) for n in range(events))
        send(ground.redis_url, "post_usage", usages)

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        return [start_celery(ground, "celery_transaction")]


class DramatiqTransaction(Counted):
    """dramatiq on Redis, and an actor that does the same."""

    name = "dramatiq on Redis, one transaction per event"
    events = 3000

    def fill(self, ground: Ground, events: int) -> None:
        make_ledger(ground)
        self.watch(ground)
        finish(start(ground, "python", "dramatiq_transaction.py", str(events)))

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        size = ("--processes", DRAMATIQ_PROCESSES, "--threads", DRAMATIQ_THREADS)
        return [start(ground, "dramatiq", "dramatiq_transaction", *size)]


class NostroDebit(Counted):
    """hf-nostro: its `debit`, once per event."""

    done_so_far = "SELECT count(*) FROM nostro.entry WHERE kind = 'consumption'"
    events = 3000

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.name = f"hf-nostro, {processes} processes"

    def fill(self, ground: Ground, events: int) -> None:
        finish(start(ground, "python", "nostro_debit.py", "fill"))
        self.watch(ground)

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        self.process = start(ground, "python", "nostro_debit.py", "debit", str(self.processes), str(events))
        return [self.process]

    def check(self, ground: Ground, events: int) -> None:
        finish(self.process)
        with self.connection:
            [found] = self.connection.execute(DEBITED)
        assert found == (events, events, CREDITS * events, CREDITS * events), f"{self.name}: {found}"


class Pgbench(Counted):
    """pgbench, with the statements of the transactions above, prepared."""

    done_so_far = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM movements_id_seq"
    events = 12_000

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.name = f"pgbench, {clients} clients"

    def fill(self, ground: Ground, events: int) -> None:
        make_ledger(ground)
        self.watch(ground)

    def start(self, ground: Ground, events: int) -> Sequence[Process]:
        assert events % self.clients == 0, "pgbench gives each client as many"
        size = ("--client", str(self.clients), "--jobs", "2", "--transactions", str(events // self.clients))
        script = ("--no-vacuum", "--protocol", "prepared", "--define", "n=0", "--file", "posting.pgbench.sql")
        program = str(embedded_programs() / "pgbench")
        self.process = ground.start(program, *size, *script, ground.database_url, cwd=PEERS)
        return [self.process]

    def check(self, ground: Ground, events: int) -> None:
        finish(self.process)
        super().check(ground, events)


def start(ground: Ground, program: str, *arguments: str) -> Process:
    """Start a program of the peers' environment among their files."""
    return ground.start(peers_program(program), *arguments, cwd=PEERS)


def start_celery(ground: Ground, module: str, *options: str) -> Process:
    """Start a Celery worker of two processes, as it comes."""
    return start(ground, "celery", "--app", module, *options, *WORKER)


def finish(process: Process) -> None:
    """Wait until a program has ended well."""
    code = process.wait(ENDS_WITHIN_S)
    assert code == 0, f"{process.args} ended with code {code}"


def make_ledger(ground: Ground) -> None:
    """Make the plain ledger, with its organisations and their grants."""
    with psycopg.connect(ground.database_url) as connection:
        connection.execute((PEERS / "posting.sql").read_bytes())


def send(broker_url: str, task: str, arguments: Iterable[tuple[Any, ...]]) -> None:
    """Send a task once for each of the arguments, over one connection."""
    with Celery(broker=broker_url, set_as_current=False) as app, app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        for each in arguments:
            app.send_task(task, each, producer=producer, ignore_result=True)


def check_done(broker_url: str, task: str, events: int) -> None:
    """Raise unless the worker itself says, once its last tasks have ended, that it ran so many."""
    with Celery(broker=broker_url, set_as_current=False) as app:

        def ran() -> bool:
            [stats] = app.control.inspect(timeout=5, limit=1).stats().values()
            assert stats["total"][task] <= events, stats["total"]
            return stats["total"] == {task: events}

        wait_until(ran, within_s=20)
