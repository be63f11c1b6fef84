"""How does a Celery worker survive messages that no task can take, and a broker that goes away?

Celery logs and deletes a message that no task can take: an unknown task, a pickle, bytes that are not JSON, a message
that kills its process or exceeds the time limit. Here its body is added to the streams first, where it becomes a dead
letter like anything else that is not an event.
"""

import hashlib
import logging
from time import sleep
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from redis.exceptions import RedisError

from worker.events import EVENT_BYTES
from worker.intake.streams import add_once, delivery_of
from worker.process import streams

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 1.0


def save(message: Any) -> bool:
    """Add a message's body to the streams, cut just behind the size limit; returns False if they are away.

    If the whole body is an event it is posted. A message that is delivered twice is saved once.
    """
    body = message.body
    raw = body.encode(errors="surrogateescape") if isinstance(body, str) else bytes(body or b"")
    try:
        add_once(streams(), [(0, raw[: EVENT_BYTES + 1])], f"poison:{hashlib.sha256(raw).hexdigest()}")
    except RedisError as error:
        log.warning(
            "A message that no task can take could not be saved yet; it will be redelivered: %s", type(error).__name__
        )
        sleep(RETRY_PAUSE_S)
        return False
    log.warning("A message that no task can take becomes a dead letter.")
    return True


def has_lost_its_connection(settle: Any) -> bool:
    """Tell whether a method of a message belongs to a connection that was closed: its transport has no client."""
    transport = getattr(getattr(getattr(settle, "__self__", None), "channel", None), "connection", None)
    return transport is not None and getattr(transport, "client", transport) is None


class DurableConsumer(Consumer):
    """Celery's consumer. It saves messages that no task can take, and survives a broken connection."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close a broken connection; the next one is opened afterwards.

        kombu 5.7 restores unacknowledged messages twice. The second time the transport is gone, and an AttributeError
        ends the worker. By then the connection is closed: a second call only cancels the tasks that still run.
        """
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError:
            if self.connection is not None:
                raise
            super().on_connection_error_after_connected(exc)

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge or reject a message in the loop's next turn.

        If its connection was lost meanwhile, kombu 5.7 ends the worker with an AttributeError. The message is
        redelivered.
        """

        def settle(*args: Any, **kwargs: Any) -> Any:
            try:
                return p(*args, **kwargs)
            except AttributeError:
                if not has_lost_its_connection(p):
                    raise
                log.warning("A message's connection is lost; the message will be redelivered.")
                return None

        return super().call_soon_ack(settle, *args, **kwargs)  # type: ignore[misc]  # newer than its stubs

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Save a message that cannot be decoded."""
        if save(message):
            super().on_decode_error(message, exc)
        else:
            message.requeue()

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Save a message that is not in Celery's form."""
        if save(message):
            super().on_unknown_message(body, message)
        else:
            message.requeue()

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Save a message for a task that does not exist."""
        if save(message):
            super().on_unknown_task(body, message, exc)
        else:
            message.requeue()

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Save a message that names a task but lacks a part that every message has."""
        if save(message):
            super().on_invalid_task(body, message, exc)
        else:
            message.requeue()


class SavedRequest(Request):
    """A message for `events.post`, saved if its task fails for good. Its task gets the name of the delivery."""

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        self.request_dict["delivery"] = delivery_of(self.id, message.body)

    def maybe_expire(self) -> None:
        """Never expire: a message may be late, but its events are posted."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Save the message, unless it will be redelivered."""
        if self.fails_for_good(exc_info.exception) and not save(self.message):
            self.reject(requeue=True)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001
        """Save a message whose process was killed because it exceeded the hard time limit."""
        if not soft and not save(self.message):
            self.reject(requeue=True)
            return
        super().on_timeout(soft, timeout)

    def fails_for_good(self, error: BaseException) -> bool:
        """Tell whether Celery will delete the message: not while it still retries after a lost process."""
        error = getattr(error, "exc", error)  # billiard wraps the error of a pool process
        if isinstance(error, WorkerLostError | SystemExit):
            return bool((self.message.headers.get("retries") or 0) >= (self.task.max_retries or 0))
        return isinstance(error, Exception) and not isinstance(error, Reject | Ignore | Retry)
