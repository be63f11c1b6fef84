"""How long do 100,000 expiries in one second take, and does usage wait for them? `python -m tests.faults.mass_expiry`.

Each grant belongs to another organisation. Meanwhile usage is sent at 500 a second, and a prober measures the time from
adding an event to seeing it on a page.
"""

import argparse
import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
from redis import Redis

from tests.faults.comparison import quantile
from tests.faults.deployment import Deployment, is_met_within, running_deployment
from tests.faults.long_run import make_keys, print_table, verify
from tests.faults.readers import Endpoint, Observations, Prober
from tests.faults.senders import SHARDS, Activity, StreamSender
from tests.faults.traffic import Traffic
from worker.intake.streams import place, queue

CHUNK = 1000
COUNT = "SELECT count(*) FROM movements WHERE kind = %s AND usage_ref LIKE 'expiring%%'"


class UsageTraffic(Traffic):
    """Only usages, of many organisations."""

    organisations = 200

    def next_event(self) -> tuple[str, bytes]:
        self.number += 1
        org_id = f"org_u{self.rng.randrange(self.organisations)}"
        return org_id, json.dumps(self.make_usage(org_id)).encode()


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description="Let many grants end in one second.")
    parser.add_argument("--grants", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=500, help="usages a second meanwhile")
    parser.add_argument("--lead", type=float, default=120, help="seconds from the first grant to the end of all")
    options = parser.parse_args()
    with running_deployment() as deployment:
        return run(deployment, options)


def run(deployment: Deployment, options: argparse.Namespace) -> int:
    """Add the grants, send usage, and wait until all grants have expired."""
    keys = make_keys(deployment)
    ends = datetime.now(UTC) + timedelta(seconds=options.lead)
    posted_s = add_grants(deployment, options.grants, ends)
    stop, observations = threading.Event(), Observations()
    sender = StreamSender(stop, deployment.redis_url, deployment.broker_url, UsageTraffic(1), options.rate)
    endpoint = Endpoint(deployment.port, keys)
    prober = Prober(stop, endpoint, observations, deployment.redis_url, deployment.broker_url)
    activities: list[Activity] = [sender, prober]
    for activity in activities:
        activity.start()
    while datetime.now(UTC) < ends:
        time.sleep(0.01)
    probes_before, began = len(prober.seconds), time.monotonic()
    expired = is_met_within(deployment, lambda: count(deployment, "e") == options.grants, within_s=300)
    took_s = time.monotonic() - began
    before, meanwhile = sorted(prober.seconds[:probes_before]), sorted(prober.seconds[probes_before:])
    stop.set()
    for activity in activities:
        activity.join(60)
    drained = is_met_within(deployment, lambda: sender.answered + prober.sent == count_usages(deployment), within_s=60)
    verify_code, verify_result = verify(deployment)
    print_table(
        {
            "grants of as many organisations, ending in one second": f"{options.grants:,}, posted within {posted_s:.0f} s",
            "all expired": f"{took_s:.1f} s after their end" if expired else "NO",
            "usage meanwhile": f"{options.rate:g}/s, {sender.answered + prober.sent:,} events, {'all' if drained else 'NOT all'} posted",
            "from adding an event to seeing it on a page, before": describe(before),
            "the same, meanwhile": describe(meanwhile),
            "`verify`": verify_result,
        }
    )
    return int(not expired or not drained or bool(verify_code))


def describe(seconds: list[float]) -> str:
    """Return quantiles of times as text."""
    if not seconds:
        return "not measured"
    return f"p50 {quantile(seconds, 0.5):.3f} s, p99 {quantile(seconds, 0.99):.3f} s, worst {seconds[-1]:.3f} s ({len(seconds)} probes)"


def add_grants(deployment: Deployment, number: int, ends: datetime) -> float:
    """Add the grants, wait until all are allotted, and return how many seconds that took."""
    began = time.monotonic()
    with Redis.from_url(deployment.redis_url) as redis:
        for start in range(0, number, CHUNK):
            grants = [
                {
                    "type": "grant",
                    "org_id": f"org_m{n}",
                    "grant_ref": f"expiring{n}",
                    "credits": 100,
                    "source": "plan",
                    "expires_at": ends.isoformat(),
                }
                for n in range(start, min(start + CHUNK, number))
            ]
            with redis.pipeline(transaction=True) as pipeline:
                queue(pipeline, [place(grant, SHARDS) for grant in grants])
                pipeline.execute()
    left_s = (ends - datetime.now(UTC)).total_seconds()
    if not is_met_within(deployment, lambda: count(deployment, "a") == number, within_s=left_s):
        sys.exit("the grants were not posted before their end: give a longer --lead")
    return time.monotonic() - began


def count(deployment: Deployment, kind: str) -> int:
    """Return how many movements of a kind the expiring grants have."""
    with psycopg.connect(deployment.database_url) as connection:
        [(found,)] = connection.execute(COUNT, [kind]).fetchall()
    return int(found)


def count_usages(deployment: Deployment) -> int:
    """Return how many usages are posted."""
    with psycopg.connect(deployment.database_url) as connection:
        [(found,)] = connection.execute("SELECT count(*) FROM movements WHERE usage_number IS NOT NULL").fetchall()
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
