"""How does a worker take messages from a Redis queue without ever losing one?

kombu pops a message and notes that it did in a second round trip: a worker that is killed in between loses the message.
Here BLMOVE moves it from the queue into a list of this consumer, in one step. An acknowledgement removes it from that
list. The consumer sends a heartbeat every second; another consumer returns the messages of a dead one to the queue.

Producers, other queues, and workers with kombu's own transport can share the queue: it is the same list. Only
priorities are lost: messages with one are moved into that list.
"""

import base64
import logging
import secrets
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.json import loads
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from worker.broker.app import EVENTS
from worker.intake.failover import leaving_replicas
from worker.intake.streams import delivery_key, delivery_of

log = logging.getLogger(__name__)

# Any: the stubs of kombu's Redis transport lack what is overridden and used here.
KombuQoS: Any = kombu_redis.QoS
KombuChannel: Any = kombu_redis.Channel
KombuTransport: Any = kombu_redis.Transport

CONSUMERS = "events:consumers"
"""A hash of consumers, and the time of each one's last heartbeat, in seconds of Redis's clock."""
HELD = "events:held:"
"""The prefix of the key of a consumer's held list; the consumer's id follows."""
TEND_EVERY_S = 1.0
DEAD_AFTER_S = 5
BLOCK_S = 1
RETRY_AFTER_S = 1.0
TEND = Path(__file__).with_name("tend.lua").read_text()
PRIORITY_STEPS = (3, 6, 9)
"""The priorities for which kombu's producers have lists of their own, beside the queue's."""


class QoS(KombuQoS):  # type: ignore[misc]
    """What this consumer has taken and not acknowledged yet.

    `held` maps a delivery tag to the message as it was moved, and to the key under which its delivery is remembered.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: dict[str, tuple[bytes, str]] = {}

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message. One that was moved is noted in Redis already."""
        moved = self.channel.take_moved()
        if moved is None:
            super().append(message, delivery_tag)
            return
        key = delivery_key(delivery_of(str(message.headers.get("id")), message.body or b""))
        self.held[delivery_tag] = (moved, key)
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Remove an acknowledged message from the held list."""
        if delivery_tag not in self.held:
            super().ack(delivery_tag)
            return
        self._release(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 -- kombu's own signature
        """Remove a rejected message from the held list; return it to the queue's end if it is to be redelivered."""
        if delivery_tag not in self.held:
            super().reject(delivery_tag, requeue=requeue)
            return
        self._release(delivery_tag, push="lpush" if requeue else None)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Return all held messages to the queue's front, so that the oldest is delivered next."""
        self._flush()
        for delivery_tag in [tag for tag in reversed(self._delivered) if tag in self.held]:
            self._release(delivery_tag, push="rpush")
            del self._delivered[delivery_tag]
        super().restore_unacked(client)

    def _release(self, delivery_tag: str, push: str | None = None) -> None:
        raw, key = self.held[delivery_tag]
        if push:
            self.channel.return_message(raw, push)
        else:
            with self.channel.conn_or_acquire() as client, client.pipeline(transaction=True) as pipeline:
                pipeline.lrem(self.channel.held_key, -1, raw)
                pipeline.delete(key)  # it is not delivered again, so it need not be remembered
                pipeline.execute()
        self.held.pop(delivery_tag, None)


class Channel(KombuChannel):  # type: ignore[misc]
    """A channel that takes the messages of queue `events` by BLMOVE, and those of all other queues as kombu does."""

    QoS = QoS
    connection_class = leaving_replicas(redis.Connection)
    connection_class_ssl = leaving_replicas(redis.SSLConnection)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.consumer = secrets.token_hex(8)
        self.held_key = HELD + self.consumer
        self.mover: Any = None
        self.sent_at: float | None = None
        self.move_after = 0.0
        self._moved: bytes | None = None
        super().__init__(*args, **kwargs)

    @property
    def takes_events(self) -> bool:
        """Tell whether this channel consumes from queue `events`."""
        return EVENTS in self._active_queues

    def take_moved(self) -> bytes | None:
        """Return the message that is being delivered, if it was moved, and forget it."""
        moved, self._moved = self._moved, None
        return moved

    def start_move(self, loop: Any) -> None:
        """Send BLMOVE, unless one is under way or the prefetch limit is reached. Connects first if needed."""
        if self.sent_at is not None or monotonic() < self.move_after or not self.qos.can_consume():
            return
        if self.mover is None:
            self.tend()  # a consumer must be known before it holds a message
            self.mover = self.async_pool.make_connection()
            self.mover.connect()
            loop.add_reader(self.mover._sock, self.finish_move, loop)
        self.mover.send_command("BLMOVE", EVENTS, self.held_key, "RIGHT", "LEFT", BLOCK_S)
        self.sent_at = monotonic()

    def finish_move(self, loop: Any) -> None:
        """Read the reply to BLMOVE, and deliver the message in it."""
        try:
            raw = self.mover.read_response(disable_decoding=True)
        except ResponseError as error:
            self.sent_at, self.move_after = None, monotonic() + RETRY_AFTER_S
            raise_if_replica(error)
            log.warning("No message could be taken from the queue; the next try follows in a second: %s", error)
            return
        except self.connection_errors:
            self.drop_mover(loop)
            raise
        self.sent_at = None
        if raw is None:
            return
        if not self.takes_events:  # the consumer was cancelled in the meantime
            self.return_message(raw)
            return
        self._moved = raw
        try:
            self.connection._deliver(read_payload(raw), EVENTS)
        finally:
            self._moved = None

    def drop_mover(self, loop: Any) -> None:
        """Disconnect; the next `start_move` connects again. A message that was moved but not read stays in the
        held list; another consumer returns it to the queue after `DEAD_AFTER_S`.
        """
        mover, self.mover, self.sent_at = self.mover, None, None
        if mover is not None:
            if loop is not None and mover._sock is not None:
                loop.remove(mover._sock.fileno())
            mover.disconnect()

    def tend(self) -> None:
        """Send a heartbeat, return what dead consumers held, and move messages with a priority into the queue."""
        keys = [CONSUMERS, EVENTS, *(f"{EVENTS}{self.sep}{step}" for step in PRIORITY_STEPS)]
        try:
            with self.conn_or_acquire() as client:
                returned = client.eval(TEND, len(keys), *keys, self.consumer, DEAD_AFTER_S, HELD)
        except ResponseError as error:
            raise_if_replica(error)
            log.warning("The consumer's heartbeat failed; the next follows in a second: %s", error)
            return
        if returned:
            log.warning("Messages of dead consumers were returned to the queue: %d", returned)

    def return_message(self, raw: bytes, push: str = "rpush") -> None:
        """Move a held message back to the queue: to its front (`rpush`) or to its end (`lpush`)."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.lrem(self.held_key, -1, raw)
            getattr(pipeline, push)(EVENTS, raw)
            pipeline.execute()

    def close(self) -> None:
        """Return the message that may still be on its way, and disconnect."""
        with suppress(*self.connection_errors, ResponseError):
            if self.sent_at is not None and (raw := self.mover.read_response(disable_decoding=True)) is not None:
                self.return_message(raw)
        self.drop_mover(None)
        super().close()

    def _brpop_read(self, **options: Any) -> Any:
        """Read the reply to kombu's BRPOP; a server that has become a replica is a lost connection."""
        try:
            return super()._brpop_read(**options)
        except ResponseError as error:
            raise_if_replica(error)
            raise

    def _update_queue_cycle(self) -> None:
        self._queue_cycle.update([queue for queue in self.active_queues if queue != EVENTS])


def raise_if_replica(error: ResponseError) -> None:
    """Raise a connection error if an error says that the server is a replica now: a new one leads to the primary."""
    if isinstance(error, ReadOnlyError) or str(error).startswith("UNBLOCKED"):
        raise RedisConnectionError(str(error)) from error


class Transport(KombuTransport):  # type: ignore[misc]
    """kombu's Redis transport, with channels that lose no message of queue `events`."""

    Channel = Channel
    connection_errors = (*KombuTransport.connection_errors, ReadOnlyError)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Take messages in each turn of the worker's event loop, and tend the consumers every second."""
        super().register_with_event_loop(connection, loop)
        loop.on_tick.add(partial(self._start_moves, loop))
        loop.call_repeatedly(TEND_EVERY_S, self._tend, loop)

    def _start_moves(self, loop: Any) -> None:
        for channel in self._event_channels():
            channel.start_move(loop)

    def _tend(self, loop: Any) -> None:
        for channel in self._event_channels():
            if channel.sent_at is not None and monotonic() - channel.sent_at > BLOCK_S + channel.health_check_interval:
                channel.drop_mover(loop)
                raise RedisConnectionError("no reply to BLMOVE in time")
            channel.tend()

    def _event_channels(self) -> list[Any]:
        return [channel for channel in self.cycle._channels if channel.takes_events]


def install() -> None:
    """Use this transport for every Redis address of this process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"


def read_payload(raw: bytes) -> dict[str, Any]:
    """Return the message in a list item. An item that is not a message is wrapped, so that it becomes a dead letter."""
    try:
        payload = loads(raw)
        if isinstance(payload["body"], str) and payload["properties"]["delivery_tag"]:
            return dict(payload)
    except (ValueError, TypeError, KeyError):
        pass
    return {
        "body": base64.b64encode(raw).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": secrets.token_hex(8),
            "delivery_info": {"exchange": EVENTS, "routing_key": EVENTS},
        },
    }
