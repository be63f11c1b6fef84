"""How are events sent while processes are killed?

Each sender is a thread. It sends again what was not answered: a producer has to do nothing else.
"""

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress

from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from tests.faults.traffic import Event, Traffic
from worker.broker import app as broker
from worker.intake import streams
from worker.producer import Producer

BATCH = 10
SHARDS = 8
RETRY_AFTER_S = 0.1
REMEMBERED = 20_000
"""How many answered events a sender remembers, to send them again if Valkey lost them."""


class Activity(threading.Thread, ABC):
    """A thread that works until it is told to stop. An unexpected error is stored, and ends the run."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stopping = stop
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
            raise

    @abstractmethod
    def work(self) -> None:
        """Work until `stopping` is set."""


class StreamSender(Activity):
    """Adds the traffic to the streams at a rate. It wakes a drain for half of the batches; a plain XADD wakes none.

    `answered` counts the events whose XADD was answered. `lost_by_valkey` counts those of them that were missing after
    Valkey was killed: it may delay a write to its append-only file while the disk is busy. They are added again. A
    producer can do the same: it asks the stream for its last id.
    """

    def __init__(self, stop: threading.Event, redis_url: str, broker_url: str, traffic: Traffic, rate: float) -> None:
        super().__init__(stop)
        self.redis = streams.connect(redis_url)
        self.app = broker.make_app(broker_url)
        self.traffic = traffic
        self.rate = rate
        self.random = random.Random(1)
        self.answered = self.sent_again = self.lost_by_valkey = 0
        self.answered_entries: list[tuple[int, str, bytes]] = []

    def work(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            placed = [(streams.shard_of(org_id, SHARDS), raw) for org_id, raw in self.traffic.batch(BATCH)]
            self.add(placed)
            due = max(due + BATCH / self.rate, time.monotonic() - 1)
            self.stopping.wait(max(0, due - time.monotonic()))
        self.app.close()

    def add(self, placed: list[tuple[int, bytes]]) -> None:
        """Add a batch; repeat until it is answered."""
        while True:
            try:
                self.try_add(placed)
            except RedisError:
                self.sent_again += len(placed)
                time.sleep(RETRY_AFTER_S)
                self.add_lost()
            else:
                return

    def try_add(self, placed: list[tuple[int, bytes]]) -> None:
        wakes = self.random.random() < 0.5
        with self.redis.pipeline(transaction=True) as pipeline:
            streams.queue(pipeline, placed)
            if not wakes:
                pipeline.command_stack.pop()  # a plain XADD does not set the awake key
            replies = pipeline.execute()
        self.answered += len(placed)
        ids = replies[: len(placed)]
        self.answered_entries += [
            (shard, entry_id.decode(), raw) for (shard, raw), entry_id in zip(placed, ids, strict=True)
        ]
        del self.answered_entries[:-REMEMBERED]
        if wakes and replies[-1]:
            with suppress(OperationalError):  # then the sweep wakes a drain
                broker.wake(self.app)

    def add_lost(self) -> None:
        """Add the events that the server lost, in their order: those with an id above the last id of their stream."""
        try:
            last = last_ids(self.redis)
            lost = [
                (shard, raw)
                for shard, entry_id, raw in self.answered_entries
                if streams.order_of(entry_id) > streams.order_of(last[shard])
            ]
            if lost:
                with self.redis.pipeline(transaction=True) as pipeline:
                    streams.queue(pipeline, lost)
                    pipeline.execute()
                self.lost_by_valkey += len(lost)
                self.answered_entries.clear()
        except RedisError:
            return  # tried again before the next batch


def last_ids(redis: Redis) -> list[str]:
    """Return the last entry id of each stream."""
    ids = []
    for shard in range(SHARDS):
        name = streams.stream_of(shard)
        info = redis.xinfo_stream(name) if redis.exists(name) else {"last-generated-id": b"0-0"}
        ids.append(info["last-generated-id"].decode())
    return ids


class CelerySender(Activity):
    """Sends `events.post` through the broker. `sent` holds the lists that the broker accepted."""

    def __init__(self, stop: threading.Event, broker_url: str, lists: Iterator[list[Event]], every_s: float) -> None:
        super().__init__(stop)
        self.app = broker.make_app(broker_url)
        self.lists = lists
        self.every_s = every_s
        self.sent: list[list[Event]] = []
        self.sent_again = 0

    def work(self) -> None:
        for events in self.lists:
            if self.stopping.wait(self.every_s):
                break
            self.send(events)
        self.app.close()

    def send(self, events: list[Event]) -> None:
        while True:
            try:
                self.app.send_task("events.post", args=[events], queue=broker.EVENTS, routing_key=broker.EVENTS)
            except (OperationalError, AttributeError):  # kombu: its channel has lost its connection, which is None
                self.sent_again += 1
                time.sleep(RETRY_AFTER_S)
            else:
                self.sent.append(events)
                return


def send_until_answered(producer: Producer, events: list[Event]) -> None:
    """Send with our own producer; repeat until it is answered."""
    while True:
        try:
            producer.send(events)
        except RedisError:
            time.sleep(RETRY_AFTER_S)
        else:
            return
