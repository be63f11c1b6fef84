"""How long does an event take until it is on a page?

Producers add 500 events a second; one event at a time is watched over HTTP, from before it is sent until it is served.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.bench.figures import quantile
from tests.bench.ground import Ground, migrated
from tests.bench.ours import count_waiting, grant_all, start_worker, usages, verify
from tests.bench.reading import ENDPOINT, make_key, serving
from tests.servers import wait_until
from worker.local import children
from worker.producer import Producer

ORGANISATIONS = 1000
WATCHED = "org_watched"
RATE = 500
BATCH = 5
LOOK_EVERY_S = 0.001
GIVE_UP_S = 10


class Latency(NamedTuple):
    """From sent to served, in ms; `rate` is what the producer reached."""

    events: int
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def measure_latency(ground: Ground, seconds: float) -> Latency:
    """Watch one event after the other for so long, while others flow; then verify."""
    with migrated(ground) as made, posting(made), serving(made, *ENDPOINT) as (_, base):
        grant_all(made, ORGANISATIONS)
        secret = make_key(made, WATCHED)
        stop = threading.Event()
        load = Load(made, stop)
        load.start()
        try:
            time.sleep(2)
            waits = list(watch(made, base, secret, seconds))
        finally:
            stop.set()
            load.join()
        wait_until(lambda: not count_waiting(made), within_s=30)
        verify(made)
    ms = [wait * 1e3 for wait in waits]
    return Latency(len(ms), load.rate, quantile(ms, 0.5), quantile(ms, 0.99), max(ms))


@contextmanager
def posting(ground: Ground) -> Iterator[None]:
    """Run a worker and the schedule."""
    processes = start_worker(ground)
    try:
        yield
    finally:
        for process in processes:
            children.end_group(process)


class Load(threading.Thread):
    """Adds events by our producer, at a rate, until told to stop."""

    def __init__(self, ground: Ground, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.ground, self.stopping = ground, stop
        self.rate = 0.0

    def run(self) -> None:
        events, sent, began = usages(ORGANISATIONS, 10**9), 0, time.monotonic()
        with Producer(self.ground.redis_url) as producer:
            while not self.stopping.is_set():
                producer.send([next(events) for _ in range(BATCH)])
                sent += BATCH
                self.rate = sent / (time.monotonic() - began)
                time.sleep(max(0.0, began + sent / RATE - time.monotonic()))


def watch(ground: Ground, base: str, secret: str, seconds: float) -> Iterator[float]:
    """Send one event after the other; yield how long each took until it was served."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=GIVE_UP_S)
    deadline, number = time.monotonic() + seconds, 0
    with Producer(ground.redis_url) as producer:
        while time.monotonic() < deadline:
            number += 1
            ref, began = f"watched_{number}", time.perf_counter()
            producer.usage(WATCHED, ref, "ai_usage", 1)
            while newest(connection, secret) != ref:
                assert time.perf_counter() - began < GIVE_UP_S, f"{ref} is not served"
                time.sleep(LOOK_EVERY_S)
            yield time.perf_counter() - began
            time.sleep(0.02 + number % 7 / 100)  # not in step with anything


def newest(connection: http.client.HTTPConnection, secret: str) -> str | None:
    """Return the ref of the newest line."""
    connection.request("GET", "/credits/usage?limit=1", headers={"Authorization": f"Bearer {secret}"})
    items = json.loads(connection.getresponse().read())["items"]
    return items[0]["usage_ref"] if items else None
