"""What is looked at, and in which order?

Each `look_at_…` yields findings about one server. An error of the server ends it and is a finding too; then the next
server is looked at.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg
from kombu.exceptions import OperationalError as BrokerError
from psycopg import Connection
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from feeds.addresses.broker import RabbitAddress, parse_broker
from feeds.addresses.postgres import place_of
from feeds.addresses.redis import RedisAddress
from feeds.cached.epoch import read_epoch
from feeds.cached.format import Server, make_stamp
from feeds.database import connect as connect_postgres
from feeds.queries import load_queries
from feeds.schema import Ledger, UnusableSetup, check_ledger
from worker.broker.app import make_app
from worker.doctor import celery_workers, machine, pooler, postgres, rabbitmq, redis_keys, redis_rights, redis_server
from worker.doctor.clocks import HERE, Reading, judge_clocks, read_clock
from worker.doctor.database_rights import READER_NEEDS, WORKER_NEEDS, judge_reader, judge_worker, read_role
from worker.doctor.finding import Finding, Section, fine, join_words, mend, note
from worker.doctor.redis_server import BROKER, FEEDS, STREAMS
from worker.intake.streams import connect as connect_redis
from worker.settings import WorkerSettings

SQL = load_queries(__file__)

CONNECT_WITHIN_S = 5
ANSWER_WITHIN_S = 8.0
NEVER_S = 10**10
AWAY = (psycopg.OperationalError, RedisConnectionError, RedisTimeoutError, BrokerError, OSError)


@dataclass
class Report:
    """What was found so far: findings by place, and clocks.

    `reason` returns in one line what a server or its driver reported. `is_away`: a server cannot be reached.
    """

    reason: Callable[[Exception], str]
    sections: list[Section] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=lambda: [HERE])
    ledger: Ledger | None = None
    is_away: bool = False

    def add(self, about: str, findings: Iterator[Finding]) -> bool:
        """Add a section. An error of the server that it is about becomes its last finding.

        Returns whether the server can be reached.
        """
        found: list[Finding] = []
        self.sections.append(Section(about, found))
        try:
            for finding in findings:
                found.append(finding)  # noqa: PERF402 -- what was found before an error is kept
        except UnusableSetup as error:
            found.append(describe_unusable(error))
        except (*AWAY, psycopg.Error, RedisError) as error:
            explained = pooler.explain_refusal(error) or postgres.explain_cancel(error)
            is_away = explained is None and isinstance(error, AWAY)
            describe = describe_away if is_away else describe_refusal
            found.append(explained or describe(error, self.reason(error)))
            self.is_away = self.is_away or is_away
            return not is_away
        return True


def examine(settings: WorkerSettings, reader_url: str, reason: Callable[[Exception], str]) -> Report:
    """Look at this machine and at every server that the settings name.

    Args:
        settings: The addresses, and what the ledger's facts should be.
        reader_url: The address of the endpoint's Postgres.
        reason: Returns in one line what a server or its driver reported.
    """
    report = Report(reason)
    report.add("This machine", iter(machine.judge_programs()))
    if settings.database_url:
        place = place_of(settings.database_url)
        report.add(f"Postgres at {place}", look_at_postgres(report, settings))
    if reader_url and reader_url != settings.database_url:
        report.add(f"Postgres for the endpoint at {place_of(reader_url)}", look_at_reader(report, reader_url))
    for address, holds in group_redis(settings):
        about = f"Redis at {address.place}/{address.db}, for {join_words(holds)}"
        is_there = report.add(about, look_at_redis(report, settings, address, holds))
        if BROKER in holds and is_there:
            look_at_workers(report, settings)
    broker = parse_broker(settings.celery_broker_url) if settings.celery_broker_url else None
    if isinstance(broker, RabbitAddress):
        look_at_rabbitmq(report, settings, broker)
    report.add("Clocks", iter(judge_clocks(report.readings)))
    return report


def group_redis(settings: WorkerSettings) -> list[tuple[RedisAddress, list[str]]]:
    """Return the databases of Redis, each with what it holds. Two addresses may name one database and user."""
    grouped: dict[tuple[str, int, str | None], tuple[RedisAddress, list[str]]] = {}
    urls = {STREAMS: settings.redis_url, FEEDS: settings.feeds_redis_url, BROKER: settings.celery_broker_url}
    for use, url in urls.items():
        address = parse_broker(url) if url else None
        if isinstance(address, RedisAddress):
            same = (address.place, address.db, address.username)
            grouped.setdefault(same, (address, []))[1].append(use)
    return list(grouped.values())


def look_at_postgres(report: Report, settings: WorkerSettings) -> Iterator[Finding]:
    """Look at the database of the ledger, and at the role that posts."""
    url = settings.database_url
    with connect_postgres(url, CONNECT_WITHIN_S) as connection, pooler.bounded(connection, ANSWER_WITHIN_S):
        yield from look_at_server(report, connection, "Postgres")
        yield from look_at_pooler(connection, url)
        report.ledger = check_ledger(connection, settings)
        yield fine("ledger", "The schema is up to date, and the settings are the ledger's.")
        yield from judge_worker(read_role(connection, WORKER_NEEDS))


def look_at_reader(report: Report, url: str) -> Iterator[Finding]:
    """Look at the database of the endpoint, and at the role that reads."""
    with connect_postgres(url, CONNECT_WITHIN_S) as connection, pooler.bounded(connection, ANSWER_WITHIN_S):
        yield from look_at_server(report, connection, "the endpoint's Postgres")
        yield from look_at_pooler(connection, url)
        yield from judge_reader(read_role(connection, READER_NEEDS))
        epoch = read_epoch(connection)
        if report.ledger is not None and epoch != report.ledger.epoch:
            what = "This is another ledger than the worker's."
            why = "Pages would not show what is posted."
            yield mend("ledger", what, why, "Set READER_DATABASE_URL to the database of DATABASE_URL.")


def look_at_server(report: Report, connection: Connection[Any], whose: str) -> Iterator[Finding]:
    """Look at what both roles depend on."""
    server = postgres.read_server(connection)
    report.readings.append(read_clock(whose, lambda: float(connection.execute(SQL["read_clock"]).fetchall()[0][0])))
    yield from postgres.judge_server(server)
    yield from postgres.judge_link(postgres.read_link(connection))
    yield from machine.judge_shared_memory(server.shared_memory_type, machine.read_shared_memory(server.process_id))


def look_at_pooler(connection: Connection[Any], url: str) -> Iterator[Finding]:
    """Find out whether there is a pooler, with a second connection."""
    with connect_postgres(url, CONNECT_WITHIN_S) as other, pooler.bounded(other, ANSWER_WITHIN_S):
        yield from pooler.judge_backends(pooler.read_backends(connection, other))


def look_at_redis(
    report: Report, settings: WorkerSettings, address: RedisAddress, holds: Collection[str]
) -> Iterator[Finding]:
    """Look at a Redis, for all that it holds."""
    with closing(connect_redis(address)) as client:
        client.ping()
        server = redis_server.read_server(client)
        yield from redis_server.judge_server(server, holds)
        yield from redis_server.judge_address(address)
        commands = redis_rights.needs_of(holds, of_reader=not settings.redis_url)
        yield from redis_rights.judge_refused(
            address.username or "default", redis_rights.read_refused(client, commands)
        )
        if settings.redis_url:
            report.readings.append(read_clock(f"Redis at {address.place}", lambda: read_time(client)))
            yield from look_at_keys(report, settings, client, server, holds)


def look_at_keys(
    report: Report, settings: WorkerSettings, client: Redis, server: redis_server.Server | None, holds: Collection[str]
) -> Iterator[Finding]:
    """Look at what lies in a Redis."""
    keys = redis_keys.read_keys(client)
    yield from redis_keys.judge_keys(keys)
    if STREAMS in holds:
        shards = report.ledger.event_shards if report.ledger else settings.event_shards
        yield from redis_keys.judge_streams(keys, shards)
    if FEEDS in holds and report.ledger and server and server.ids:
        yield from redis_keys.judge_stamps(keys, make_stamp(report.ledger.epoch, Server(*server.ids)))
    if BROKER in holds:
        yield from redis_keys.judge_leftovers(redis_keys.read_leftovers(client, keys))


def read_time(client: Redis) -> float:
    """Return the time of Redis's clock."""
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def look_at_rabbitmq(report: Report, settings: WorkerSettings, address: RabbitAddress) -> None:
    """Look at RabbitMQ, and at the workers if it answers."""
    parts = urlsplit(address.urls[0])
    with make_app(settings.celery_broker_url) as app:
        if report.add(f"RabbitMQ at {parts.hostname}:{parts.port or 5672}", rabbitmq.look(app)):
            look_at_workers(report, settings)


def look_at_workers(report: Report, settings: WorkerSettings) -> None:
    """Look at the workers that answer on the broker."""
    shards = report.ledger.event_shards if report.ledger else settings.event_shards
    with make_app(settings.celery_broker_url) as app:
        if isinstance(parse_broker(settings.celery_broker_url), RedisAddress):
            # kombu's consumers return messages that were taken longer ago than this, but the doctor changes nothing.
            app.conf.broker_transport_options = {**app.conf.broker_transport_options, "visibility_timeout": NEVER_S}
        report.add("Workers", celery_workers.look(app, shards))


def describe_away(_error: Exception, reason: str) -> Finding:
    """Return the finding for a server that does not answer. `reason` is what it or its driver reported."""
    what = f"It cannot be reached: {reason}."
    return mend("reachable", what, "Nothing else of it could be looked at.", "Start it, or correct its address.")


def describe_refusal(error: Exception, reason: str) -> Finding:
    """Return the finding for a server that refused a question. `reason` is what it reported."""
    what = f"It refuses a question: {reason}."
    if isinstance(error, psycopg.Error):
        why = "Posting and the endpoint ask the same, so they fail too."
        return mend(
            "refused", what, why, "Run `usage-feeds migrate`, then `usage-feeds migrate --roles`, as the owner."
        )
    return note("refused", what, "The rest of it could not be looked at.", "Look with a user that may ask.")


def describe_unusable(error: UnusableSetup) -> Finding:
    """Return the finding for a ledger that no process can use. Its message says what to do behind the last colon."""
    what, _, to_do = str(error).rpartition(": ")
    return mend("ledger", f"{what}.", "Every process refuses to start.", f"{to_do[:1].upper()}{to_do[1:]}")
