"""How are Celery's queues and messages configured?

Every setting has its reason, found by trying Celery 5.7 on Redis and RabbitMQ.
"""

from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu import Connection, Exchange, Queue

from feeds.addresses.broker import RabbitAddress, parse_broker
from feeds.addresses.redis import RedisAddress
from worker.broker import waker

EVENTS = "events"
DRAINS = waker.DRAINS
HELPER_UNTIL = "helper_until"
"""A header of a message that wakes a helping drain: from when on it is of no use, in seconds of Redis's clock."""


class App(Celery):
    """A Celery app that connects to the broker that it was given, whatever the environment says.

    Celery itself prefers the variable CELERY_BROKER_URL to the app's configuration.
    """

    def connection(self, hostname: str | None = None, *args: Any, **options: Any) -> Connection:
        """Return a connection to the broker that was given."""
        return super().connection(hostname or self.conf["broker_url"], *args, **options)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Connection:
        """Return a connection to the broker that was given."""
        return super().connection_for_read(url or self.conf["broker_url"], **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Connection:
        """Return a connection to the broker that was given."""
        return super().connection_for_write(url or self.conf["broker_url"], **options)


def make_app(broker_url: str) -> Celery:
    """Return a Celery app for a Redis or RabbitMQ broker; it connects on first use. Raises BadAddress.

    It never becomes the current app of the process, whose `shared_task`s stay with the app that they had. It has no
    fix-ups: Celery's one for Django changes `sys.path` if DJANGO_SETTINGS_MODULE is set.
    """
    app = App("usage-feeds", loader="app", fixups=[], set_as_current=False)
    broker = parse_broker(broker_url) if broker_url else RedisAddress()
    rabbit = isinstance(broker, RabbitAddress)
    app.conf.update(
        broker_url=celery_url(broker),
        broker_use_ssl=broker.tls,
        # Drains and sweeps have their own queue, so that a backlog of `events.post` does not delay them.
        task_queues=[declare(EVENTS, quorum=rabbit), declare(DRAINS, quorum=rabbit)],
        task_default_queue=EVENTS,
        task_default_exchange=EVENTS,
        task_default_routing_key=EVENTS,
        task_create_missing_queues=False,
        accept_content=["json"],  # a pickle is code
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # A message that a killed process had taken is redelivered, a bounded number of times.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_retry_on_worker_lost=True,
        # Stores a message that no task can take as a dead letter. Only the worker imports it.
        worker_consumer="worker.broker.consumer:DurableConsumer",
        task_time_limit=60,
        task_soft_time_limit=45,
        worker_prefetch_multiplier=1,  # no process holds messages that others could run
        worker_cancel_long_running_tasks_on_connection_loss=True,  # else a redelivered message runs twice at once
        worker_soft_shutdown_timeout=50,  # running tasks end before a cold shutdown
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # retry for ever
        broker_heartbeat=30,
        task_publish_retry_policy={"max_retries": 5, "interval_start": 0, "interval_step": 0.5, "interval_max": 2},
        broker_transport_options={"confirm_publish": True} if rabbit else REDIS_TRANSPORT,
        visibility_timeout=REDIS_TRANSPORT["visibility_timeout"],
        worker_enable_prefetch_count_reduction=not rabbit,
        enable_utc=True,
    )
    return app


REDIS_TRANSPORT: dict[str, Any] = {
    # Far above the time limit. If workers differ, the shortest on a broker wins.
    "visibility_timeout": 300,
    # Unacknowledged messages are looked for every 5 s; with kombu's defaults it takes over a minute.
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    # These detect half-open sockets.
    "health_check_interval": 10,
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    # No priorities: fewer round trips, and producers in other languages find the plain key.
    "priority_steps": [0],
}


def celery_url(broker: RedisAddress | RabbitAddress) -> str:
    """Return the broker's URL as Celery reads it. Its options are left out, because Celery reads them differently."""
    if isinstance(broker, RabbitAddress):
        return ";".join(broker.urls)
    username, password = quote(broker.username or "", safe=""), quote(broker.password or "", safe="")
    user = f"{username}:{password}@" if username or password else ""
    if broker.path:
        return f"redis+socket://{user}{quote(broker.path)}?virtual_host={broker.db}"
    host = f"[{broker.host}]" if ":" in broker.host else quote(broker.host)
    return f"{'redis' if broker.tls is None else 'rediss'}://{user}{host}:{broker.port}/{broker.db}"


def declare(name: str, *, quorum: bool) -> Queue:
    """Return a queue; on RabbitMQ a quorum queue, which survives the loss of a node."""
    arguments = {"x-queue-type": "quorum"} if quorum else None
    return Queue(name, Exchange(name, type="direct"), routing_key=name, queue_arguments=arguments)


def wake(app: Celery, helper_until: float | None = None) -> None:
    """Send the message that starts a drain. Raises kombu's OperationalError if the broker is away.

    The message has no expiry: Celery compares it with the worker's clock, which may be minutes ahead of the sender's.
    """
    headers = {} if helper_until is None else {HELPER_UNTIL: helper_until}
    app.send_task("events.drain", queue=DRAINS, routing_key=DRAINS, headers=headers)
