"""Does everything hold while something is killed every few seconds? `python3 run.py faults --minutes N --seed S`.

Events are sent through the streams and through Celery, and readers read pages. Meanwhile workers, their pool processes,
beat, the endpoint, Postgres and Valkey are killed. At the end all events must be posted; ledger and pages are compared with
a plain model. A table is printed. The exit code is 1 if anything was lost, posted twice or served wrongly.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time

import psycopg
from redis import Redis

from feeds.keys import create_key
from tests.faults.comparison import compare_run
from tests.faults.deployment import Deployment, Setup, is_met_within, running_deployment
from tests.faults.readers import Endpoint, Observations, Prober, Reader, Watcher
from tests.faults.senders import Activity, CelerySender, StreamSender
from tests.faults.traffic import CELERY_ORGANISATIONS, STREAM_ORGANISATIONS, Traffic, celery_lists
from tests.servers import CHECKOUT, wait_until
from worker.broker.transport import HELD
from worker.intake.streams import add, place, stream_of

PROBE_ORGANISATIONS = [f"org_p{number}" for number in range(4)]
ALL_ORGANISATIONS = [*STREAM_ORGANISATIONS, *CELERY_ORGANISATIONS, *PROBE_ORGANISATIONS]
KILLS = {
    "worker": 48, "pool process": 18, "beat": 6, "endpoint": 8, "postgres": 5, "valkey": 5,
    "failover": 4, "beat's clock": 6, "pgbouncer": 4,
}  # fmt: skip
"""What is killed, or fails over, or moves, and how often relative to the others."""
UPGRADE_AFTER = 1 / 3
"""After which part of the time the upgrade begins."""
DRAIN_WITHIN_S = 420.0
"""Longer than the time after which Redis redelivers the messages of a killed worker."""


def main() -> int:
    """Run, and print the table."""
    options = parse(sys.argv[1:])
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}, {options.minutes:g} minutes, broker {options.broker}", flush=True)
    with running_deployment(Setup(options.broker, options.pgbouncer, options.upgrade_from)) as deployment:
        return run(deployment, options, seed)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py faults",
        description="Kill processes under load, then compare ledger and pages with a plain model.",
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--seed", type=int, help="decides the kills and events; if not given, a random one is used and printed"
    )
    parser.add_argument("--rate", type=float, default=250, help="events a second through the streams")
    parser.add_argument("--messages", type=float, default=5, help="messages of `events.post` a second")
    parser.add_argument("--every", type=float, default=4, help="seconds between two kills, on average")
    parser.add_argument(
        "--broker", choices=("redis", "rabbitmq"), default="redis", help="the broker of Celery's messages"
    )
    parser.add_argument("--only", choices=KILLS, action="append", help="kill nothing else")
    parser.add_argument("--pgbouncer", action="store_true", help="reach Postgres through PgBouncer, and kill it too")
    parser.add_argument(
        "--upgrade-from", metavar="COMMIT", help="begin with this older code, and upgrade after a third of the time"
    )
    return parser.parse_args(arguments)


def run(deployment: Deployment, options: argparse.Namespace, seed: int) -> int:
    """Send, read and kill; then wait until everything is posted, and compare."""
    stop, stop_reading = threading.Event(), threading.Event()
    observations, traffic = Observations(), Traffic(seed)
    endpoint = Endpoint(deployment.port, make_keys(deployment))
    deployment.on_kill = lambda part: note_kill(part, endpoint, observations)
    stream_sender = StreamSender(stop, deployment.redis_url, deployment.broker_url, traffic, options.rate)
    celery_sender = CelerySender(stop, deployment.broker_url, celery_lists(seed), 1 / options.messages)
    prober = Prober(stop, endpoint, observations, deployment.redis_url, deployment.broker_url)
    senders: list[Activity] = [stream_sender, celery_sender, prober]
    readers = [Reader(stop_reading, endpoint, observations, ALL_ORGANISATIONS, seed + number) for number in range(2)]
    activities = [*senders, *readers, Watcher(stop_reading, deployment.database_url, observations)]
    for activity in activities:
        activity.start()
    began = time.monotonic()
    kill_until_the_end(deployment, activities, options, seed)
    minutes = (time.monotonic() - began) / 60
    stop.set()
    for sender in senders:
        is_met_within(deployment, lambda sender=sender: not sender.is_alive(), within_s=90)
    print("the last kill is over; waiting until everything is posted", flush=True)
    recovery_s = time.monotonic()
    drained = is_met_within(deployment, lambda: is_drained(deployment, celery_sender), DRAIN_WITHIN_S)
    recovery_s = time.monotonic() - recovery_s
    lost_by_broker = resend_missing(deployment, celery_sender)
    time.sleep(5)  # the promise is "within 5 s after any single crash": from here on, pages must match the whole ledger
    verify_code, verify_result = verify(deployment)
    stop_reading.set()
    for activity in activities:
        activity.join(30)
    result = compare_run(deployment, traffic, stream_sender, celery_sender, prober, observations, endpoint)
    table = {
        "run": f"{minutes:.1f} min, seed {seed}, {options.rate:g} events/s, Celery over {options.broker}"
        + (", Postgres through PgBouncer" if options.pgbouncer else "")
        + (f", upgraded from {options.upgrade_from}" if options.upgrade_from else ""),
        **result.table,
        "`events.post` lost by the broker before the task ran, then sent again": f"{lost_by_broker} of {sum(map(len, celery_sender.sent))}",
        "drained after the last kill": f"{recovery_s:.0f} s" if drained else "NO",
        "`verify`": verify_result,
    }
    errors = [repr(activity.error) for activity in activities if activity.error]
    if errors:
        table["errors of this program"] = errors
    print_table(table)
    for difference in [*result.wrong, *observations.wrong]:
        print(difference)
    print(f"tracebacks of the processes: {dict(deployment.count_tracebacks())}")
    return int(bool(result.wrong or observations.wrong or errors or not drained or verify_code))


def note_kill(part: str, endpoint: Endpoint, observations: Observations) -> None:
    """Tell the readers what was just killed."""
    observations.killed_at = time.monotonic()
    endpoint.kills += part == "endpoint"


def make_keys(deployment: Deployment) -> dict[str, str]:
    """Return a key for every organisation. A first event creates the organisations."""
    with Redis.from_url(deployment.redis_url) as redis:
        add(redis, [place({"type": "settle", "org_id": org_id}, 8) for org_id in ALL_ORGANISATIONS])
    with psycopg.connect(deployment.database_url, autocommit=True) as connection:

        def are_known() -> bool:
            [(count,)] = connection.execute("SELECT count(*) FROM organisations").fetchall()
            return bool(count == len(ALL_ORGANISATIONS))

        wait_until(are_known, within_s=30)
        return {org_id: create_key(connection, org_id=org_id)[1] for org_id in ALL_ORGANISATIONS}


def kill_until_the_end(
    deployment: Deployment, activities: list[Activity], options: argparse.Namespace, seed: int
) -> None:
    """Kill one part after the other, as the seed decides, until the time is over or an activity fails."""
    rng = random.Random(seed)
    kills = {part: weight for part, weight in KILLS.items() if part in (options.only or KILLS)}
    if not options.pgbouncer:
        kills.pop("pgbouncer", None)
    end = time.monotonic() + options.minutes * 60
    upgrade_at = end - options.minutes * 60 * (1 - UPGRADE_AFTER) if options.upgrade_from else float("inf")
    next_kill = time.monotonic() + options.every
    reported_at = time.monotonic()
    while time.monotonic() < end and not any(activity.error for activity in activities):
        deployment.restart_dead()
        if time.monotonic() >= upgrade_at:
            print("upgrade", flush=True)
            deployment.upgrade()
            upgrade_at = float("inf")
        if time.monotonic() >= next_kill:
            [part] = rng.choices(list(kills), list(kills.values()))
            deployment.kill(part, rng.choice)
            next_kill = time.monotonic() + min(2 * options.every, max(0.3, rng.expovariate(1 / options.every)))
        if time.monotonic() - reported_at > 60:
            reported_at = time.monotonic()
            print(f"{(end - reported_at) / 60:.1f} min left, kills {dict(deployment.kills)}", flush=True)
        time.sleep(0.1)
    deployment.restart_dead()


def is_drained(deployment: Deployment, sender: CelerySender) -> bool:
    """Tell whether no event waits, neither in the streams nor at the broker."""
    with Redis.from_url(deployment.redis_url) as redis:
        if any(redis.xlen(stream_of(shard)) for shard in range(8)):
            return False
        if deployment.broker_url == deployment.redis_url:
            return not redis.llen("events") and not redis.keys(f"{HELD}*")
        return not find_missing(deployment, sender)


def find_missing(deployment: Deployment, sender: CelerySender) -> list[dict[str, object]]:
    """Return the events that the broker accepted and that are not in the ledger."""
    with psycopg.connect(deployment.database_url) as connection:
        rows = connection.execute("SELECT DISTINCT usage_ref FROM movements WHERE usage_ref LIKE 'c%%'").fetchall()
    known = {ref for (ref,) in rows}
    return [event for events in sender.sent for event in events if event["usage_ref"] not in known]


def resend_missing(deployment: Deployment, sender: CelerySender) -> int:
    """Send the events that the broker lost through the streams, wait until they are posted, and return their number."""
    lost = find_missing(deployment, sender)
    if lost:
        with Redis.from_url(deployment.redis_url) as redis:
            add(redis, [place(event, 8) for event in lost])
        is_met_within(deployment, lambda: not find_missing(deployment, sender), within_s=30)
    return len({str(event["usage_ref"]) for event in lost})


def verify(deployment: Deployment) -> tuple[int, str]:
    """Run `usage-feeds verify`; return its exit code and its result in words."""
    command = [sys.executable, "-m", "worker", "verify", "--json"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=dict(deployment.environment()), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.returncode, f"exit {done.returncode}: {done.stdout}{done.stderr}"[:2000]
    found = json.loads(done.stdout)
    return 0, f"no difference in {found['movements']:,} movements, {found['grants']:,} grants"


def print_table(table: dict[str, object]) -> None:
    """Print a table that can be copied into a README."""
    print("\n| | |\n|---|---|")
    for name, value in table.items():
        print(f"| {name} | {value} |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
