"""Which tasks does Celery run?

`celery -A worker.tasks worker` and `celery -A worker.tasks beat`.
"""

import gc
import logging
import sys
from functools import partial
from time import monotonic, sleep
from typing import Any

import psycopg
from celery import Celery, Task, signals
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from feeds.schema import UnusableSetup
from worker.broker import app as broker
from worker.intake import batch as intake
from worker.intake.streams import add_once, place
from worker.intake.sweep import sweep as run_sweep
from worker.process import database, ledger, show, streams
from worker.settings import worker_settings

log = logging.getLogger(__name__)

DRAIN_LIFE_S = 1.0
SWEEP_EVERY_S = 1.0
POST_AGAIN_S = 1.0
POST_TRIES = 12
"""Each may take 2 s more to fail: well below the task's time limit."""

app = broker.make_app(worker_settings().celery_broker_url)
app.conf.beat_schedule = {
    "sweep": {
        "task": "events.sweep",
        "schedule": SWEEP_EVERY_S,
        "options": {"queue": broker.DRAINS, "routing_key": broker.DRAINS, "expires": broker.WAKE_EXPIRES_S},
    }
}
app.conf.beat_max_loop_interval = SWEEP_EVERY_S
NO_RETRY: dict[str, Any] = {"retry_on_worker_lost": False, "reject_on_worker_lost": False}
"""For drains and sweeps: whatever happens to one, the next second's does its work."""
AWAY = (psycopg.Error, RedisError, OperationalError)


@app.task(name="events.drain", ignore_result=True, **NO_RETRY)
def drain() -> None:
    """Post what waits in the streams, and show it, for about a second.

    A server that is away ends it: what waits stays where it is, and the sweep wakes another.
    """
    try:
        with database().connection() as connection:
            wake = partial(wake_quietly, app)
            work = intake.Intake(connection, streams(), ledger(), show, wake)
            intake.drain(work, until=monotonic() + DRAIN_LIFE_S)
    except AWAY as error:
        log.warning("A drain ended early, nothing is lost: %s", first_line(error))


@app.task(name="events.sweep", ignore_result=True, **NO_RETRY)
def sweep() -> None:
    """Wake drains where events wait, and send for the grants whose start or end has come."""
    try:
        with database().connection() as connection:
            run_sweep(connection, streams(), ledger(), partial(wake_quietly, app))
    except AWAY as error:
        log.warning("A sweep ended early, the next comes in a second: %s", first_line(error))


@app.task(
    name="events.post",
    bind=True,
    typing=False,
    ignore_result=True,
    Request="worker.broker.consumer:KeptRequest",
    max_retries=5,
    default_retry_delay=1,  # Celery's own is three minutes
)
def post(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
    """Add a list of events to the streams, in its order, and wake a drain.

    What is no list of events is added too, whole, and becomes a dead letter. While the streams are
    away it keeps trying, then gives its message back to the broker.
    """
    well_formed = len(args) == 1 and isinstance(args[0], list) and not kwargs
    events = args[0] if well_formed else [{"args": args, "kwargs": kwargs}]
    placed = [place(event, ledger().event_shards) for event in events]
    for _ in range(POST_TRIES):
        try:
            if add_once(streams(), placed, str(self.request.id)):
                wake_quietly(app)
        except RedisError as error:
            log.warning("events.post tries again: %s", first_line(error))
            sleep(POST_AGAIN_S)
        else:
            return
    raise Reject("the streams are away", requeue=True)


def wake_quietly(celery: Celery, expires_s: float = broker.WAKE_EXPIRES_S) -> None:
    """Send for a drain; where the broker is away the sweep will do it later."""
    try:
        broker.wake(celery, expires_s)
    except (OperationalError, RedisError) as error:
        log.warning("No drain could be woken, the sweep will do it: %s", first_line(error))


def first_line(error: Exception) -> str:
    """Return what an error says, short enough for a log."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def refuse_to_start(**_: Any) -> None:
    """End the process, with one line, where the ledger is not what the environment says."""
    try:
        ledger()
    except UnusableSetup as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def empty_drains(**_: Any) -> None:
    """Forget the wakes of the past: ten hours without a worker leave thousands, and each costs 3 ms."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        queue = app.amqp.queues[broker.DRAINS].bind(channel)
        queue.declare()
        queue.purge()


def spare_the_collector(**_: Any) -> None:
    """Keep the garbage collector from going through all that is loaded, several times a batch: a fifth of its time."""
    gc.freeze()
    gc.set_threshold(20_000)


def quieten(**_: Any) -> None:
    """Keep the coming and going of every drain and sweep, four lines a second, out of the log."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


signals.after_setup_logger.connect(quieten, weak=False)
signals.worker_init.connect(refuse_to_start, weak=False)
signals.worker_init.connect(empty_drains, weak=False)
signals.worker_process_init.connect(spare_the_collector, weak=False)
signals.beat_init.connect(refuse_to_start, weak=False)
