"""How does a producer wake a drain?

It sends the message that Celery would send for the task `events.drain`, without Celery: a Celery app in a host's
process would be one more app beside the host's own, with settings that the host's environment can change.

Producers run this, so it needs only the core dependencies.
"""

import base64
import json
import os
from threading import Lock
from typing import Any
from uuid import uuid4

from redis import Redis

from feeds.addresses.broker import RabbitAddress

DRAINS = "drains"
"""The queue of drains and sweeps."""
WAKES_MAX = 1000
"""How many wakes may lie in Redis. A wake that is lost does no harm, but a queue that no worker reads must not grow."""
WAKE_EXPIRES_S = 60
"""How long RabbitMQ holds a wake, by its own clock."""
WITHIN_S = 2
"""How long RabbitMQ may take to accept a connection, and to take a message."""
BODY = json.dumps([[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
"""No arguments, in Celery's message protocol 2."""


def make_headers(task_id: str) -> dict[str, Any]:
    """Return the headers of a message that starts a drain, in Celery's message protocol 2."""
    return {
        "lang": "py",
        "task": "events.drain",
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "usage-feeds producer",
    }


def make_message() -> str:
    """Return a message that starts a drain, as kombu stores it in a Redis list."""
    task_id = str(uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(BODY.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": make_headers(task_id),
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": DRAINS},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
    )


class RedisWaker:
    """Sends wakes through Redis."""

    def __init__(self, client: Redis) -> None:
        self.client = client

    def wake(self) -> None:
        """Send a wake. Raises redis.RedisError."""
        if self.client.lpush(DRAINS, make_message()) > WAKES_MAX:
            self.client.ltrim(DRAINS, 0, WAKES_MAX - 1)

    def close(self) -> None:
        """Close the connections. Another wake opens new ones."""
        self.client.close()


class RabbitWaker:
    """Sends wakes through RabbitMQ, on one connection of this process."""

    def __init__(self, address: RabbitAddress) -> None:
        self.address = address
        self.node = 0
        self._forget()

    def wake(self) -> None:
        """Send a wake; if the connection was lost, on a new one, to the next node. Raises kombu's or socket errors."""
        if self.pid != os.getpid():
            self._forget()  # the connection, and perhaps the lock, are the parent's
        with self.lock:
            if self.channel is not None:
                try:
                    self._publish()
                except Exception:  # noqa: BLE001 -- kombu, amqp and sockets have many; a new connection is tried next
                    self._disconnect()
                else:
                    return
            try:
                self._connect()
                self._publish()
            except BaseException:
                self._disconnect()
                self.node += 1
                raise

    def close(self) -> None:
        """Close the connection. Another wake opens a new one."""
        if self.pid == os.getpid():
            with self.lock:
                self._disconnect()

    def _forget(self) -> None:
        self.pid, self.lock = os.getpid(), Lock()
        self.connection: Any = None
        self.channel: Any = None

    def _connect(self) -> None:
        # Imported here: with Redis as the broker a producer does not need kombu.
        from kombu import Connection  # noqa: PLC0415

        self.connection = Connection(
            self.address.urls[self.node % len(self.address.urls)],
            ssl=dict(self.address.tls) if self.address.tls else False,
            connect_timeout=WITHIN_S,
            transport_options={"read_timeout": WITHIN_S, "write_timeout": WITHIN_S},
        )
        self.connection.ensure_connection(max_retries=0)
        self.channel = self.connection.channel()

    def _publish(self) -> None:
        """Publish to the default exchange, so that nothing is declared: a queue that does not exist gets no wakes."""
        from kombu import Producer  # noqa: PLC0415

        task_id = str(uuid4())
        Producer(self.channel, auto_declare=False).publish(
            BODY,
            exchange="",
            routing_key=DRAINS,
            content_type="application/json",
            content_encoding="utf-8",
            headers=make_headers(task_id),
            correlation_id=task_id,
            expiration=WAKE_EXPIRES_S,
            timeout=WITHIN_S,
        )

    def _disconnect(self) -> None:
        connection, self.connection, self.channel = self.connection, None, None
        if connection is not None:
            connection.collect(socket_timeout=WITHIN_S)  # never raises, unlike `close`
