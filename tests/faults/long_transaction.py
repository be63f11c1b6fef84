"""What does a transaction that stays open cost a busy organisation? `python -m tests.faults.long_transaction`.

A dump or a report holds a snapshot, so Postgres may remove no version of a row that was updated since. A batch updates
the rows of its shard, of its organisations and of the grants that it draws. Usage of one organisation is sent all the
time: some time without the other transaction, then some time with it, then without it again.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from feeds.database import begin
from tests.bench.resources import cpu_s, process_tree
from tests.faults.comparison import quantile
from tests.faults.deployment import Deployment, running_deployment
from tests.faults.long_run import make_keys, verify
from tests.faults.mass_expiry import UsageTraffic
from tests.faults.readers import Endpoint, Observations, Prober
from tests.faults.senders import Activity, StreamSender

EVERY_S = 10


class HotTraffic(UsageTraffic):
    """Usages of one organisation, which draw from one large grant."""

    organisations = 1

    def next_event(self) -> tuple[str, bytes]:
        if self.number == 0:
            self.number = 1
            grant = {"type": "grant", "org_id": "org_u0", "grant_ref": "g", "credits": 10**12, "source": "plan"}
            return "org_u0", json.dumps(grant).encode()
        return super().next_event()


def main() -> int:
    """Run, and print a line every ten seconds."""
    parser = argparse.ArgumentParser(description="Hold a snapshot while one organisation is busy.")
    parser.add_argument("--rate", type=float, default=2000, help="usages a second")
    parser.add_argument("--before", type=float, default=30, help="seconds before the transaction")
    parser.add_argument("--held", type=float, default=300, help="seconds for which the transaction stays open")
    parser.add_argument("--after", type=float, default=30, help="seconds after it")
    options = parser.parse_args()
    with running_deployment() as deployment:
        return run(deployment, options)


def run(deployment: Deployment, options: argparse.Namespace) -> int:
    """Send usage, hold the transaction for a part of the time, and verify the ledger."""
    stop, observations = threading.Event(), Observations()
    sender = StreamSender(stop, deployment.redis_url, deployment.broker_url, HotTraffic(1), options.rate)
    endpoint = Endpoint(deployment.port, make_keys(deployment))
    prober = Prober(stop, endpoint, observations, deployment.redis_url, deployment.broker_url)
    activities: list[Activity] = [sender, prober]
    for activity in activities:
        activity.start()
    print("transaction  posted/s  Postgres CPU  p50 ms  p99 ms")
    watch(deployment, prober, "before", options.before)
    with open_snapshot(deployment):
        watch(deployment, prober, "open", options.held)
    watch(deployment, prober, "ended", options.after)
    stop.set()
    for activity in activities:
        activity.join(60)
    code, result = verify(deployment)
    print(f"verify: {result}")
    return code


@contextmanager
def open_snapshot(deployment: Deployment) -> Iterator[None]:
    """Hold a snapshot of the ledger, as a dump does."""
    with psycopg.connect(deployment.database_url, autocommit=True) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM organisations")
        yield
        connection.execute("ROLLBACK")


def watch(deployment: Deployment, prober: Prober, state: str, for_s: float) -> None:
    """Print what was seen, every ten seconds."""
    ends = time.monotonic() + for_s
    while time.monotonic() < ends:
        probes, posted, cpu, began = (
            len(prober.seconds),
            count_movements(deployment),
            measure_cpu(deployment),
            time.monotonic(),
        )
        time.sleep(EVERY_S)
        took_s = time.monotonic() - began
        rate = (count_movements(deployment) - posted) / took_s
        cores = (measure_cpu(deployment) - cpu) / took_s
        seconds = sorted(prober.seconds[probes:]) or [float("nan")]
        p50, p99 = quantile(seconds, 0.5) * 1000, quantile(seconds, 0.99) * 1000
        print(f"{state:11}  {rate:8,.0f}  {cores:5.2f} cores   {p50:6.0f}  {p99:6.0f}", flush=True)


def measure_cpu(deployment: Deployment) -> float:
    """Return the seconds of CPU that Postgres has used."""
    return cpu_s(process_tree([deployment.postgres.process.pid]))


def count_movements(deployment: Deployment) -> int:
    """Return how many movements are posted."""
    with psycopg.connect(deployment.database_url, autocommit=True) as connection, begin(connection):
        [(found,)] = connection.execute("SELECT sum(counts[1])::bigint FROM organisations").fetchall()
    return int(found or 0)


if __name__ == "__main__":
    sys.exit(main())
