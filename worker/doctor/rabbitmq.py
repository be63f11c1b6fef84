"""Is RabbitMQ set up so that it loses no message?"""

from collections.abc import Iterator
from typing import NamedTuple

from amqp.exceptions import AMQPError, NotFound, PreconditionFailed
from celery import Celery
from kombu import Connection, Queue

from worker.doctor.finding import Finding, fine, mend, note

CONNECT_WITHIN_S = 5


class Declared(NamedTuple):
    """A queue as the broker has it. `is_quorum` is None if the user may not find out."""

    name: str
    exists: bool
    is_quorum: bool | None


def look(app: Celery) -> Iterator[Finding]:
    """Look at the broker and its queues. Raises the error of a broker that is away."""
    with app.connection_for_write(connect_timeout=CONNECT_WITHIN_S) as connection:
        yield fine("version", f"{read_version(connection)}.")
        yield from judge_queues(read_queues(app, connection))


def read_version(connection: Connection) -> str:
    """Return the product and version that the server announces. Connects first."""
    connection.ensure_connection(max_retries=1, timeout=CONNECT_WITHIN_S)
    facts = connection.connection.server_properties
    return f"{facts.get('product', 'the broker')} {facts.get('version', '')}".strip()


def read_queues(app: Celery, connection: Connection) -> list[Declared]:
    """Return what the broker has of our queues. Nothing is declared that does not exist."""
    return [read_queue(queue, connection) for queue in app.conf.task_queues]


def read_queue(queue: Queue, connection: Connection) -> Declared:
    """Return whether a queue exists, and whether it is a quorum queue: another declaration of it is refused."""
    try:
        declare(queue, connection, passive=True)
    except NotFound:
        return Declared(queue.name, exists=False, is_quorum=None)
    except AMQPError:
        return Declared(queue.name, exists=True, is_quorum=None)
    try:
        declare(queue, connection, passive=False)
    except PreconditionFailed:
        return Declared(queue.name, exists=True, is_quorum=False)
    except AMQPError:
        return Declared(queue.name, exists=True, is_quorum=None)
    return Declared(queue.name, exists=True, is_quorum=True)


def declare(queue: Queue, connection: Connection, *, passive: bool) -> None:
    """Declare a queue, on a channel of its own: an error closes the channel."""
    with connection.channel() as channel:
        queue(channel).queue_declare(passive=passive)


def judge_queues(queues: list[Declared]) -> list[Finding]:
    """Judge the queues."""
    found = []
    for queue in queues:
        if not queue.exists:
            what = f"There is no queue `{queue.name}` yet."
            why = "Messages for it are dropped."
            found.append(note("queues", what, why, "Start a worker: it declares its queues."))
        elif queue.is_quorum is False:
            what = f"The queue `{queue.name}` is not a quorum queue."
            why = "A worker cannot declare it, and the loss of a node loses messages."
            to_do = "Empty and delete it, then start a worker. Producers set task_create_missing_queue_type to quorum."
            found.append(mend("queues", what, why, to_do))
        elif queue.is_quorum is None:
            what = f"The queue `{queue.name}` cannot be looked at."
            why = "It must be a quorum queue."
            found.append(note("queues", what, why, "Look with a user that may configure it."))
        else:
            found.append(fine("queues", f"The queue `{queue.name}` is a quorum queue."))
    what = "Whether RabbitMQ has an alarm of memory or disk cannot be seen from a client."
    why = "While it has one, it takes no message, and producers wait."
    return [*found, note("alarm", what, why, "Watch it with `rabbitmq-diagnostics alarms`.")]
