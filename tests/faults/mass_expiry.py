"""How long do 100,000 ends in one second take, and does usage wait for them? `python -m tests.faults.storm`.

Each grant is of an organisation of its own. Usage flows at 500 a second meanwhile, and a probe measures how long an
event takes from being added to being on a page.
"""

import argparse
import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
from redis import Redis

from tests.faults.doors import SHARDS, Sender, StreamDoor
from tests.faults.long import make_keys, show, verify
from tests.faults.readers import Endpoint, Prober, Served
from tests.faults.reckoning import quantile
from tests.faults.stage import Stage, settled, stage
from tests.faults.traffic import Traffic
from worker.intake.streams import place, queue

CHUNK = 1000
COUNT = "SELECT count(*) FROM movements WHERE kind = %s AND usage_ref LIKE 'storm%%'"


class UsageAlone(Traffic):
    """Usages of many organisations, and nothing else."""

    def one(self) -> tuple[str, bytes]:
        self.number += 1
        org_id = f"org_u{self.rng.randrange(200)}"
        return org_id, json.dumps(self.usage(org_id)).encode()


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description="Let many grants end in one second.")
    parser.add_argument("--grants", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=500, help="usages a second meanwhile")
    parser.add_argument("--lead", type=float, default=120, help="seconds from the first grant to the end of all")
    options = parser.parse_args()
    with stage("redis") as made:
        return run(made, options)


def run(made: Stage, options: argparse.Namespace) -> int:
    """Add the grants, let usage flow, wait for the end of all."""
    keys = make_keys(made)
    ends = datetime.now(UTC) + timedelta(seconds=options.lead)
    posted_s = add_grants(made, options.grants, ends)
    stop, served = threading.Event(), Served()
    door = StreamDoor(stop, made.redis_url, made.broker_url, UsageAlone(1), options.rate)
    prober = Prober(stop, Endpoint(made.port, keys), served, made.redis_url, made.broker_url)
    senders: list[Sender] = [door, prober]
    for one in senders:
        one.start()
    while datetime.now(UTC) < ends:
        time.sleep(0.01)
    before, began = len(prober.seconds), time.monotonic()
    expired = settled(made, lambda: count(made, "e") == options.grants, within_s=300)
    took_s = time.monotonic() - began
    calm, storm = sorted(prober.seconds[:before]), sorted(prober.seconds[before:])
    stop.set()
    for one in senders:
        one.join(60)
    drained = settled(made, lambda: door.answered + prober.sent == count_usages(made), within_s=60)
    verified = verify(made)
    show(
        {
            "grants of as many organisations, ending in one second": f"{options.grants:,}, posted within {posted_s:.0f} s",
            "all expired": f"{took_s:.1f} s after their end" if expired else "NO",
            "usage meanwhile": f"{options.rate:g}/s, {door.answered + prober.sent:,} in all, {'all' if drained else 'NOT all'} posted",
            "added to on a page, before": in_words(calm),
            "added to on a page, meanwhile": in_words(storm),
            "`verify`": verified[1],
        }
    )
    return int(not expired or not drained or bool(verified[0]))


def in_words(seconds: list[float]) -> str:
    """Return how long it took, of how many."""
    if not seconds:
        return "not measured"
    return f"p50 {quantile(seconds, 0.5):.3f} s, p99 {quantile(seconds, 0.99):.3f} s, worst {seconds[-1]:.3f} s ({len(seconds)} probes)"


def add_grants(made: Stage, number: int, ends: datetime) -> float:
    """Add the grants, and wait until all are allotted; return how long that took."""
    began = time.monotonic()
    with Redis.from_url(made.redis_url) as redis:
        for start in range(0, number, CHUNK):
            grants = [
                {
                    "type": "grant",
                    "org_id": f"org_m{n}",
                    "grant_ref": f"storm{n}",
                    "credits": 100,
                    "source": "plan",
                    "expires_at": ends.isoformat(),
                }
                for n in range(start, min(start + CHUNK, number))
            ]
            with redis.pipeline(transaction=True) as pipeline:
                queue(pipeline, [place(grant, SHARDS) for grant in grants])
                pipeline.execute()
    if not settled(made, lambda: count(made, "a") == number, within_s=(ends - datetime.now(UTC)).total_seconds()):
        sys.exit("the grants were not posted before their end: give a longer --lead")
    return time.monotonic() - began


def count(made: Stage, kind: str) -> int:
    """Return how many lines of a kind the storm's grants have."""
    with psycopg.connect(made.database_url) as connection:
        [(found,)] = connection.execute(COUNT, [kind]).fetchall()
    return int(found)


def count_usages(made: Stage) -> int:
    """Return how many usages are posted."""
    with psycopg.connect(made.database_url) as connection:
        [(found,)] = connection.execute("SELECT count(*) FROM movements WHERE usage_number IS NOT NULL").fetchall()
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
