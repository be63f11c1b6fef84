"""How does a Celery worker take messages, whatever they hold and whenever its broker goes away?

Celery logs what no task can take and lets it go: an unknown task, a pickle, bytes that are no JSON, a message that
kills or outlasts its process. Here its body is added to the streams first, where it becomes a dead letter like
anything that is no event.
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
from worker.intake.streams import add_once
from worker.process import streams

log = logging.getLogger(__name__)

AGAIN_S = 1.0


def keep(message: Any) -> bool:
    """Add a message's body to the streams, cut right behind the limit; False where they are away.

    Whoever sent an event as the whole body has it posted. A message that comes twice is kept once.
    """
    body = message.body
    raw = body.encode(errors="surrogateescape") if isinstance(body, str) else bytes(body or b"")
    try:
        add_once(streams(), [(0, raw[: EVENT_BYTES + 1])], f"poison:{hashlib.sha256(raw).hexdigest()}")
    except RedisError as error:
        log.warning("A message that no task can take could not be kept yet, it comes again: %s", type(error).__name__)
        sleep(AGAIN_S)
        return False
    log.warning("A message that no task can take becomes a dead letter.")
    return True


def has_lost_its_connection(settle: Any) -> bool:
    """Tell whether a method of a message belongs to a connection that was given up: its transport has no client."""
    transport = getattr(getattr(getattr(settle, "__self__", None), "channel", None), "connection", None)
    return transport is not None and getattr(transport, "client", transport) is None


class LastingConsumer(Consumer):
    """Celery's consumer, with a memory for what it cannot take, and alive after a broken connection."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a broken connection; the next is made after it.

        kombu 5.7 gives back what was unacknowledged twice; the second time, with the transport gone, it ends the worker
        by an AttributeError. By then the connection is forgotten: a second call only cancels what still runs.
        """
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError:
            if self.connection is not None:
                raise
            super().on_connection_error_after_connected(exc)

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge a message, or give it back, in the loop's next turn.

        Where its connection has gone meanwhile kombu 5.7 ends the worker by an AttributeError; the message comes again.
        """

        def settle(*args: Any, **kwargs: Any) -> Any:
            try:
                return p(*args, **kwargs)
            except AttributeError:
                if not has_lost_its_connection(p):
                    raise
                log.warning("A message's connection is gone: it comes again.")
                return None

        return super().call_soon_ack(settle, *args, **kwargs)  # type: ignore[misc]  # newer than its stubs

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Keep what cannot be decoded."""
        if keep(message):
            super().on_decode_error(message, exc)
        else:
            message.requeue()

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Keep what is not of Celery's form."""
        if keep(message):
            super().on_unknown_message(body, message)
        else:
            message.requeue()

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Keep what names a task that we do not have."""
        if keep(message):
            super().on_unknown_task(body, message, exc)
        else:
            message.requeue()

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Keep what names a task and lacks something that every message has."""
        if keep(message):
            super().on_invalid_task(body, message, exc)
        else:
            message.requeue()


class KeptRequest(Request):
    """A message for `events.post`, kept where its task failed for good."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Keep it, unless it will come again."""
        if self.fails_for_good(exc_info.exception) and not keep(self.message):
            self.reject(requeue=True)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001
        """Keep what was killed for taking too long."""
        if not soft and not keep(self.message):
            self.reject(requeue=True)
            return
        super().on_timeout(soft, timeout)

    def fails_for_good(self, error: BaseException) -> bool:
        """Tell whether Celery is about to let the message go: not while a lost process is made good for."""
        error = getattr(error, "exc", error)  # billiard wraps what a pool process raised
        if isinstance(error, WorkerLostError | SystemExit):
            return bool((self.message.headers.get("retries") or 0) >= (self.task.max_retries or 0))
        return isinstance(error, Exception) and not isinstance(error, Reject | Ignore | Retry)
