"""How do Celery's messages travel?

Needs the core dependencies alone: producers send wakes with it. Every setting has its reason, found
by trying Celery 5.7 on Redis and RabbitMQ.
"""

from typing import Any

from celery import Celery
from kombu import Exchange, Queue

EVENTS = "events"
DRAINS = "drains"
WAKE_EXPIRES_S = 60


def make_app(broker_url: str) -> Celery:
    """Return a Celery app for a Redis or RabbitMQ broker; it connects when it is first used."""
    app = Celery("usage-feeds")
    rabbit = broker_url.startswith(("amqp", "pyamqp"))
    app.conf.update(
        broker_url=broker_url.replace("unix://", "redis+socket://", 1),
        # A queue of their own for drains and sweeps: no backlog of `events.post` delays them.
        task_queues=[declare(EVENTS, quorum=rabbit), declare(DRAINS, quorum=rabbit)],
        task_default_queue=EVENTS,
        task_default_exchange=EVENTS,
        task_default_routing_key=EVENTS,
        task_create_missing_queues=False,
        accept_content=["json"],  # a pickle is code
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # What a killed process had taken is delivered again, a bounded number of times.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_retry_on_worker_lost=True,
        # What no task can take is kept as a dead letter. The worker alone imports it.
        worker_consumer="worker.broker.consumer:LastingConsumer",
        task_time_limit=60,
        task_soft_time_limit=45,
        worker_prefetch_multiplier=1,  # no hoarding
        worker_cancel_long_running_tasks_on_connection_loss=True,  # one live copy
        worker_soft_shutdown_timeout=50,  # what runs is finished before a cold kill
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # never give up
        broker_heartbeat=30,
        task_publish_retry_policy={"max_retries": 5, "interval_start": 0, "interval_step": 0.5, "interval_max": 2},
        broker_transport_options={"confirm_publish": True} if rabbit else REDIS_TRANSPORT,
        visibility_timeout=REDIS_TRANSPORT["visibility_timeout"],
        worker_enable_prefetch_count_reduction=not rabbit,
        enable_utc=True,
    )
    return app


REDIS_TRANSPORT: dict[str, Any] = {
    # The shortest of all workers on a broker wins; far above the time limit.
    "visibility_timeout": 300,
    # Unacknowledged messages are looked for every 5 s; by default it takes over a minute.
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    # Half-open sockets.
    "health_check_interval": 10,
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    # No priorities: fewer round trips, and producers in other languages find the plain key.
    "priority_steps": [0],
}


def declare(name: str, *, quorum: bool) -> Queue:
    """Return a queue; on RabbitMQ one that survives the loss of a node."""
    arguments = {"x-queue-type": "quorum"} if quorum else None
    return Queue(name, Exchange(name, type="direct"), routing_key=name, queue_arguments=arguments)


def wake(app: Celery, expires_s: float = WAKE_EXPIRES_S) -> None:
    """Send for a drain. Raises kombu's OperationalError where the broker is away: the sweep will do it later."""
    app.send_task("events.drain", queue=DRAINS, routing_key=DRAINS, expires=expires_s)
