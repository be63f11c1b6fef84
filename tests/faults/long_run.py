"""Does everything hold while something is killed every few seconds? `python3 run.py faults --minutes N --seed S`.

Events flow through both doors, readers walk pages, and workers, their pool processes, beat, the endpoint, Postgres and
Valkey are killed in turn. At the end all must have drained, and ledger and pages are compared with a plain model.
One table says what came of it; the exit code is 1 where anything was lost, posted twice or served wrongly.
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
from tests.faults.doors import CeleryDoor, Sender, StreamDoor
from tests.faults.readers import Endpoint, Prober, Reader, Served, Watcher
from tests.faults.reckoning import reckon
from tests.faults.stage import Stage, settled, stage
from tests.faults.traffic import CELERY_ORGANISATIONS, STREAM_ORGANISATIONS, Traffic, celery_lists
from tests.servers import CHECKOUT, wait_until
from worker.intake.streams import add, place, stream_of

PROBE_ORGANISATIONS = [f"org_p{number}" for number in range(4)]
KILLS = {"worker": 54, "pool process": 22, "beat": 6, "endpoint": 8, "postgres": 5, "valkey": 5}
DRAIN_WITHIN_S = 420.0
"""Longer than the time after which Redis delivers what a killed worker had taken."""


def main() -> int:
    """Run, and print the table."""
    options = parse(sys.argv[1:])
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}, {options.minutes:g} minutes, broker {options.broker}", flush=True)
    with stage(options.broker) as made:
        return run(made, options, seed)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py faults", description="Kill things under load, and look what comes of it."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="a run's kills and events; made up, and printed, where none is given")
    parser.add_argument("--rate", type=float, default=250, help="events a second through the streams")
    parser.add_argument("--messages", type=float, default=5, help="messages of `events.post` a second")
    parser.add_argument("--every", type=float, default=4, help="seconds between two kills, on average")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis", help="where Celery's messages go")
    parser.add_argument("--only", choices=KILLS, action="append", help="kill nothing else")
    return parser.parse_args(arguments)


def run(made: Stage, options: argparse.Namespace, seed: int) -> int:
    """Send, kill, read; then let all come to rest, and reckon."""
    stop, stop_reading = threading.Event(), threading.Event()
    served, traffic = Served(), Traffic(seed)
    endpoint = Endpoint(made.port, make_keys(made))
    made.on_kill = lambda sort: note_kill(sort, endpoint, served)
    everybody = [*STREAM_ORGANISATIONS, *CELERY_ORGANISATIONS, *PROBE_ORGANISATIONS]
    stream_door = StreamDoor(stop, made.redis_url, made.broker_url, traffic, options.rate)
    celery_door = CeleryDoor(stop, made.broker_url, celery_lists(seed), 1 / options.messages)
    prober = Prober(stop, endpoint, served, made.redis_url, made.broker_url)
    readers: list[Sender] = [Reader(stop_reading, endpoint, served, everybody, seed + number) for number in range(2)]
    senders = [stream_door, celery_door, prober]
    everyone = [*senders, *readers, Watcher(stop_reading, made.database_url, served)]
    for one in everyone:
        one.start()
    began = time.monotonic()
    kill_until(made, everyone, options, seed)
    minutes = (time.monotonic() - began) / 60
    stop.set()
    for one in senders:
        settled(made, lambda one=one: not one.is_alive(), within_s=90)
    print("drains", flush=True)
    recovery_s = time.monotonic()
    drained = settled(made, lambda: is_drained(made, celery_door), DRAIN_WITHIN_S)
    recovery_s = time.monotonic() - recovery_s
    lost_by_broker = resend_missing(made, celery_door)
    time.sleep(5)  # "after any single crash within 5 s": what is read from here on is compared with the whole ledger
    verified = verify(made)
    stop_reading.set()
    for one in everyone:
        one.join(30)
    facts = reckon(made, traffic, stream_door, celery_door, prober, served, endpoint)
    head = {"run": f"{minutes:.1f} min, seed {seed}, {options.rate:g} events/s, Celery over {options.broker}"}
    tail = {
        "`events.post` lost by the broker before the task ran, then sent again": f"{lost_by_broker} of {sum(map(len, celery_door.sent))}",
        "drained after the last kill": f"{recovery_s:.0f} s" if drained else "NO",
        "`verify`": verified[1],
    }
    errors = [repr(one.error) for one in everyone if one.error]
    show({**head, **facts.table, **tail, **({"errors of this program": errors} if errors else {})})
    for words in [*facts.wrong, *served.wrong]:
        print(words)
    print(f"tracebacks of the processes: {dict(made.tracebacks())}")
    return int(bool(facts.wrong or served.wrong or errors or not drained or verified[0]))


def note_kill(sort: str, endpoint: Endpoint, served: Served) -> None:
    """Tell the readers what was killed just now."""
    served.killed_at = time.monotonic()
    endpoint.life += sort == "endpoint"


def make_keys(made: Stage) -> dict[str, str]:
    """Return a key for every organisation; a first event makes them known."""
    org_ids = [*STREAM_ORGANISATIONS, *CELERY_ORGANISATIONS, *PROBE_ORGANISATIONS]
    with Redis.from_url(made.redis_url) as redis:
        add(redis, [place({"type": "settle", "org_id": org_id}, 8) for org_id in org_ids])
    with psycopg.connect(made.database_url, autocommit=True) as connection:

        def known() -> bool:
            [(count,)] = connection.execute("SELECT count(*) FROM organisations").fetchall()
            return bool(count == len(org_ids))

        wait_until(known, within_s=30)
        return {org_id: create_key(connection, org_id=org_id)[1] for org_id in org_ids}


def kill_until(made: Stage, everyone: list[Sender], options: argparse.Namespace, seed: int) -> None:
    """Kill one thing after the other, as the seed says, until the time is over or a sender fails."""
    rng = random.Random(seed)
    kills = {sort: weight for sort, weight in KILLS.items() if sort in (options.only or KILLS)}
    end = time.monotonic() + options.minutes * 60
    next_kill = time.monotonic() + options.every
    said = time.monotonic()
    while time.monotonic() < end and not any(one.error for one in everyone):
        made.revive()
        if time.monotonic() >= next_kill:
            [sort] = rng.choices(list(kills), list(kills.values()))
            made.kill(sort, rng.choice)
            next_kill = time.monotonic() + min(2 * options.every, max(0.3, rng.expovariate(1 / options.every)))
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{(end - said) / 60:.1f} min to go, kills {dict(made.kills)}", flush=True)
        time.sleep(0.1)
    made.revive()


def is_drained(made: Stage, door: CeleryDoor) -> bool:
    """Tell whether nothing waits: not in the streams, and not with the broker."""
    with Redis.from_url(made.redis_url) as redis:
        if any(redis.xlen(stream_of(shard)) for shard in range(8)):
            return False
        over_redis = made.broker_url == made.redis_url
        if over_redis and redis.llen("events"):
            return False
        taken = redis.hvals("unacked") if over_redis else [b"events.post"]
        return not any(b"events.post" in message for message in taken) or not missing(made, door)


def missing(made: Stage, door: CeleryDoor) -> list[dict[str, object]]:
    """Return the events that the broker took and that are not in the ledger."""
    with psycopg.connect(made.database_url) as connection:
        rows = connection.execute("SELECT DISTINCT usage_ref FROM movements WHERE usage_ref LIKE 'c%%'").fetchall()
    known = {ref for (ref,) in rows}
    return [event for events in door.sent for event in events if event["usage_ref"] not in known]


def resend_missing(made: Stage, door: CeleryDoor) -> int:
    """Send through the stream what the broker lost, and wait until it is posted; return how many events."""
    lost = missing(made, door)
    if lost:
        with Redis.from_url(made.redis_url) as redis:
            add(redis, [place(event, 8) for event in lost])
        settled(made, lambda: not missing(made, door), within_s=30)
    return len({str(event["usage_ref"]) for event in lost})


def verify(made: Stage) -> tuple[int, str]:
    """Run `usage-feeds verify`."""
    command = [sys.executable, "-m", "worker", "verify", "--json"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=dict(made.environment()), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.returncode, f"exit {done.returncode}: {done.stdout}{done.stderr}"[:2000]
    found = json.loads(done.stdout)
    return 0, f"no difference in {found['movements']:,} movements, {found['grants']:,} grants"


def show(table: dict[str, object]) -> None:
    """Print a table that can be put into a README."""
    print("\n| | |\n|---|---|")
    for name, value in table.items():
        print(f"| {name} | {value} |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
