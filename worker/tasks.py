"""Which tasks does Celery run?

`celery -A worker.tasks worker` and `celery -A worker.tasks beat`.
"""

import gc
import logging
from functools import partial
from time import monotonic, sleep
from typing import Any

import psycopg
from celery import Celery, Task, signals
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from feeds.schema import LedgerEmpty
from worker.broker import transport
from worker.broker.app import DRAINS, HELPER_UNTIL, make_app, wake
from worker.broker.pool import refuse_other_pools
from worker.broker.schedule import Steady
from worker.broker.start import check_or_exit, settings_or_exit
from worker.intake.batch import Intake
from worker.intake.drain import drain as run_drain
from worker.intake.streams import add_once, place
from worker.intake.sweep import now_s
from worker.intake.sweep import sweep as run_sweep
from worker.ledger.faults import PostingFails
from worker.process import database, ledger, publish, streams

log = logging.getLogger(__name__)

DRAIN_LIFE_S = 1.0
SWEEP_EVERY_S = 1.0
POST_RETRY_PAUSE_S = 1.0
POST_TRIES = 12
"""A try may take 2 s to fail, so all tries together stay well below the task's time limit."""

transport.install()
app = make_app(settings_or_exit().celery_broker_url)
app.conf.beat_schedule = {
    "sweep": {
        "task": "events.sweep",
        "schedule": Steady(SWEEP_EVERY_S),
        "options": {"queue": DRAINS, "routing_key": DRAINS},
    }
}
app.conf.beat_max_loop_interval = SWEEP_EVERY_S
NO_RETRY: dict[str, Any] = {"retry_on_worker_lost": False, "reject_on_worker_lost": False}
"""For drains and sweeps: if one fails, the next second's does its work."""
AWAY = (psycopg.Error, RedisError, OperationalError, LedgerEmpty, PostingFails)


@app.task(name="events.drain", bind=True, ignore_result=True, **NO_RETRY)
def drain(self: Task[Any, Any]) -> None:
    """Post what waits in the streams, and publish it, for about a second.

    If a server is away the drain ends: the entries stay in the streams, and the sweep wakes another drain.
    """
    try:
        helper_until = self.request.get(HELPER_UNTIL)
        if helper_until is not None and now_s(streams()) > float(helper_until):
            return
        with database().connection() as connection:
            intake = Intake(connection, streams(), ledger(), publish, partial(wake_quietly, app))
            run_drain(intake, until=monotonic() + DRAIN_LIFE_S)
    except AWAY as error:
        log.warning("A drain ended early, nothing is lost: %s", first_line(error))


@app.task(name="events.sweep", ignore_result=True, **NO_RETRY)
def sweep() -> None:
    """Wake drains if entries wait, and settle organisations with grants whose start or end has come."""
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
    Request="worker.broker.consumer:SavedRequest",
    max_retries=5,
    default_retry_delay=1,  # Celery's own is three minutes
)
def post(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
    """Add a list of events to the streams, in its order, and wake a drain.

    Arguments that are not a list of events are added as one entry, which becomes a dead letter. While the streams are
    away the task retries, then returns its message to the broker.
    """
    well_formed = len(args) == 1 and isinstance(args[0], list) and not kwargs
    events = args[0] if well_formed else [{"args": args, "kwargs": kwargs}]
    placed = [place(event, ledger().event_shards) for event in events]
    for _ in range(POST_TRIES):
        try:
            if add_once(streams(), placed, str(self.request.get("delivery") or self.request.id)):
                wake_quietly(app)
        except RedisError as error:
            log.warning("events.post tries again: %s", first_line(error))
            sleep(POST_RETRY_PAUSE_S)
        else:
            return
    raise Reject("the streams are away", requeue=True)


def wake_quietly(celery: Celery, helper_until: float | None = None) -> None:
    """Send the message that starts a drain; if the broker is away the sweep will send one later."""
    try:
        wake(celery, helper_until)
    except (OperationalError, RedisError) as error:
        log.warning("No drain could be woken, the sweep will do it: %s", first_line(error))


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message, for a log."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def refuse_to_start(**_: Any) -> None:
    """End the process, with one line, unless the ledger and the servers fit the environment."""
    check_or_exit()


def empty_drains(**_: Any) -> None:
    """Delete old messages that wake drains: ten hours without a worker leave thousands, and each costs 3 ms."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        queue = app.amqp.queues[DRAINS].bind(channel)
        queue.declare()
        queue.purge()


def freeze_loaded_objects(**_: Any) -> None:
    """Freeze start-up objects, so that the garbage collector does not rescan them: that took 20 % of a batch's time."""
    gc.freeze()
    gc.set_threshold(20_000)


def quieten(**_: Any) -> None:
    """Keep the start and end of each drain and sweep out of the log: that is four lines a second."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


signals.after_setup_logger.connect(quieten, weak=False)
signals.worker_init.connect(refuse_other_pools, weak=False)
signals.worker_init.connect(refuse_to_start, weak=False)
signals.worker_init.connect(empty_drains, weak=False)
signals.worker_process_init.connect(freeze_loaded_objects, weak=False)
signals.beat_init.connect(refuse_to_start, weak=False)
