"""How do the events of a run get in, whatever is being killed?

Each sender is a thread. What was not answered is sent again, which is all that a producer has to do.
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
AGAIN_S = 0.1
KEPT = 20_000


class Sender(threading.Thread, ABC):
    """What all senders share: they end when asked, and an error that nobody expected ends the run."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.stopping = stop
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.send_all()
        except BaseException as error:
            self.error = error
            raise

    @abstractmethod
    def send_all(self) -> None:
        """Send until asked to stop."""


class StreamDoor(Sender):
    """Adds the traffic to the streams at a rate. Wakes a drain for half of the batches, as a plain XADD does not.

    `answered`: events that XADD answered. `forgotten`: those of them that Valkey did not find in its append-only
    file after it was killed (it may put off a write while the disk is busy); they are added again, as a
    producer may that asks the stream for its last id.
    """

    def __init__(self, stop: threading.Event, redis_url: str, broker_url: str, traffic: Traffic, rate: float) -> None:
        super().__init__(stop)
        self.redis = streams.connect(redis_url)
        self.app = broker.make_app(broker_url)
        self.traffic = traffic
        self.rate = rate
        self.waking = random.Random(1)
        self.answered = self.again = self.forgotten = 0
        self.kept: list[tuple[int, str, bytes]] = []

    def send_all(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            placed = [(streams.shard_of(org_id, SHARDS), raw) for org_id, raw in self.traffic.batch(BATCH)]
            self.add(placed)
            due = max(due + BATCH / self.rate, time.monotonic() - 1)
            self.stopping.wait(max(0, due - time.monotonic()))
        self.app.close()

    def add(self, placed: list[tuple[int, bytes]]) -> None:
        """Add a batch, again until it is answered."""
        while True:
            try:
                self.try_add(placed)
            except RedisError:
                self.again += len(placed)
                time.sleep(AGAIN_S)
                self.add_forgotten()
            else:
                return

    def try_add(self, placed: list[tuple[int, bytes]]) -> None:
        wakes = self.waking.random() < 0.5
        with self.redis.pipeline(transaction=True) as pipeline:
            streams.queue(pipeline, placed)
            if not wakes:
                pipeline.command_stack.pop()  # a plain XADD does not say that it will wake a drain
            answers = pipeline.execute()
        self.answered += len(placed)
        ids = answers[: len(placed)]
        self.kept += [(shard, entry_id.decode(), raw) for (shard, raw), entry_id in zip(placed, ids, strict=True)]
        del self.kept[:-KEPT]
        if wakes and answers[-1]:
            with suppress(OperationalError):  # the sweep will
                broker.wake(self.app)

    def add_forgotten(self) -> None:
        """Add anew, in their order, what was answered and is above its stream's last id: the server lost it."""
        try:
            last = last_ids(self.redis)
            lost = [(shard, raw) for shard, entry_id, raw in self.kept if streams.order_of(entry_id) > streams.order_of(last[shard])]
            if lost:
                with self.redis.pipeline(transaction=True) as pipeline:
                    streams.queue(pipeline, lost)
                    pipeline.execute()
                self.forgotten += len(lost)
                self.kept.clear()
        except RedisError:
            return  # asked again before the next batch


def last_ids(redis: Redis) -> list[str]:
    """Return the last id that each stream gave out."""
    ids = []
    for shard in range(SHARDS):
        name = streams.stream_of(shard)
        info = redis.xinfo_stream(name) if redis.exists(name) else {"last-generated-id": b"0-0"}
        ids.append(info["last-generated-id"].decode())
    return ids


class CeleryDoor(Sender):
    """Sends `events.post` through the broker; `sent` holds what the broker took."""

    def __init__(self, stop: threading.Event, broker_url: str, lists: Iterator[list[Event]], every_s: float) -> None:
        super().__init__(stop)
        self.app = broker.make_app(broker_url)
        self.lists = lists
        self.every_s = every_s
        self.sent: list[list[Event]] = []
        self.again = 0

    def send_all(self) -> None:
        for events in self.lists:
            if self.stopping.wait(self.every_s):
                break
            self.send(events)
        self.app.close()

    def send(self, events: list[Event]) -> None:
        while True:
            try:
                self.app.send_task("events.post", args=[events], queue=broker.EVENTS, routing_key=broker.EVENTS)
            except OperationalError:
                self.again += 1
                time.sleep(AGAIN_S)
            else:
                self.sent.append(events)
                return


def send_surely(producer: Producer, events: list[Event]) -> None:
    """Send by our own producer until it is answered."""
    while True:
        try:
            producer.send(events)
        except RedisError:
            time.sleep(AGAIN_S)
        else:
            return
