"""How long does it take until a page holds an event?

Producers add 500 events a second. Meanwhile one event at a time is measured over HTTP, from sending it to serving it.
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
from tests.bench.reading import ENDPOINT, make_key, running_server
from tests.bench.servers import Servers, migrated_database
from tests.bench.usage_feeds import count_waiting, grant_all, start_worker, usages, verify
from tests.servers import wait_until
from worker.local import children
from worker.producer import Producer

ORGANISATIONS = 1000
MEASURED_ORGANISATION = "org_watched"
RATE = 500
BATCH = 5
POLL_EVERY_S = 0.001
GIVE_UP_S = 10


class Latency(NamedTuple):
    """The time from sent to served, in ms. `rate` is the rate that the load reached, in events a second."""

    events: int
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def measure_latency(servers: Servers, seconds: float) -> Latency:
    """Measure one event after the other for so many seconds while other events are posted; then verify."""
    with migrated_database(servers) as own, running_worker(own), running_server(own, *ENDPOINT) as (_, base):
        grant_all(own, ORGANISATIONS)
        secret = make_key(own, MEASURED_ORGANISATION)
        stop = threading.Event()
        load = Load(own, stop)
        load.start()
        try:
            time.sleep(2)
            waits_s = list(measure_waits(own, base, secret, seconds))
        finally:
            stop.set()
            load.join()
        wait_until(lambda: not count_waiting(own), within_s=30)
        verify(own)
    ms = [wait_s * 1e3 for wait_s in waits_s]
    return Latency(len(ms), load.rate, quantile(ms, 0.5), quantile(ms, 0.99), max(ms))


@contextmanager
def running_worker(servers: Servers) -> Iterator[None]:
    """Run a worker and the schedule."""
    processes = start_worker(servers)
    try:
        yield
    finally:
        for process in processes:
            children.end_group(process)


class Load(threading.Thread):
    """Adds events with our producer, at a rate, until it is told to stop."""

    def __init__(self, servers: Servers, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.servers, self.stopping = servers, stop
        self.rate = 0.0

    def run(self) -> None:
        events, sent, began = usages(ORGANISATIONS, 10**9), 0, time.monotonic()
        with Producer(self.servers.redis_url) as producer:
            while not self.stopping.is_set():
                producer.send([next(events) for _ in range(BATCH)])
                sent += BATCH
                self.rate = sent / (time.monotonic() - began)
                time.sleep(max(0.0, began + sent / RATE - time.monotonic()))


def measure_waits(servers: Servers, base: str, secret: str, seconds: float) -> Iterator[float]:
    """Send one event after the other, and yield how many seconds it took until each was served."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=GIVE_UP_S)
    deadline, number = time.monotonic() + seconds, 0
    with Producer(servers.redis_url) as producer:
        while time.monotonic() < deadline:
            number += 1
            ref, began = f"watched_{number}", time.perf_counter()
            producer.usage(MEASURED_ORGANISATION, ref, "ai_usage", 1)
            while newest_ref(connection, secret) != ref:
                assert time.perf_counter() - began < GIVE_UP_S, f"{ref} was not served within {GIVE_UP_S} s"
                time.sleep(POLL_EVERY_S)
            yield time.perf_counter() - began
            time.sleep(0.02 + number % 7 / 100)  # varied, so that it is not in step with anything


def newest_ref(connection: http.client.HTTPConnection, secret: str) -> str | None:
    """Return the ref of the newest item."""
    connection.request("GET", "/credits/usage?limit=1", headers={"Authorization": f"Bearer {secret}"})
    items = json.loads(connection.getresponse().read())["items"]
    return items[0]["usage_ref"] if items else None
