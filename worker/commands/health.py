"""`health`: are events posted, and are sweeps run?"""

import sys
from contextlib import closing
from datetime import datetime
from typing import Any, NamedTuple

import click
from redis import Redis

from feeds.cached.format import FeedsAway
from feeds.cached.worker_connection import WorkerConnection
from feeds.database import READING, begin
from feeds.queries import load_queries
from worker.commands.output import count, json_option, print_facts, print_json
from worker.commands.servers import open_ledger, open_streams, require_redis
from worker.intake.backlog import parse_backlogs, queue_backlogs
from worker.intake.batch import SKEW_TOLERATED
from worker.intake.failures import FAILURES, parse_failures
from worker.intake.sweep import SWEPT
from worker.settings import worker_settings

SQL = load_queries(__file__)

FULL = 0.7
"""Above this part of its memory Redis gets a warning: when it is full it takes no more events."""


class LedgerHealth(NamedTuple):
    """What Postgres reports: when a batch was last posted, how many seconds ago, the dead letters, and its clock.

    At most 1,000,000 dead letters are counted. On a standby nothing can be posted.
    """

    last_batch_at: datetime | None
    last_batch_s: float | None
    dead_letters: int
    postgres_time: datetime
    postgres_is_standby: bool = False


class StreamHealth(NamedTuple):
    """What the streams' Redis reports. Ages are in seconds of its clock; memory is in bytes, a limit of 0 is none.

    `failing_shards` were not posted since a batch failed through no event's fault; `last_failure` is the newest error.
    """

    waiting_events: int
    oldest_event_s: float
    broken_streams: int
    last_sweep_s: float | None
    memory_used: int
    memory_limit: int
    memory_policy: str
    failing_shards: int
    last_failure: str | None
    last_failure_s: float | None
    redis_time_s: float


@click.command()
@click.option(
    "--max-age",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="How long an event may wait.",
)
@click.option(
    "--max-sweep-age",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="How long ago the last sweep may have been.",
)
@json_option
def health(*, max_age: float, max_sweep_age: float, as_json: bool) -> None:
    """Report how old the last batch and the last sweep are; exit 1 if something has stopped.

    That is the case if an event waits too long (no worker posts), if the last sweep is too old (either the schedule,
    which requests one every second, or the worker, which runs it, has stopped), if a shard's key is not a stream, or if
    Postgres is a standby.

    Warnings leave the exit code at 0: dead letters, shards whose last batch failed because of the database, its
    settings or this program (their events wait), a Redis that fills up or may evict, and a feeds' Redis that cannot
    be used (pages then come from Postgres).
    """
    with open_ledger() as (connection, ledger), open_streams() as streams:
        with begin(connection, READING):
            [row] = connection.execute(SQL["read_health"]).fetchall()
        ledger_health = LedgerHealth(*row)
        stream_health = read_stream_health(streams, ledger.event_shards)
    feeds_problem = check_feeds_redis()
    problems = find_problems(ledger_health, stream_health, max_age, max_sweep_age)
    facts = {
        "healthy": not problems,
        "problems": problems,
        "warnings": find_warnings(ledger_health, stream_health, feeds_problem),
        **stream_health._asdict(),
        **ledger_health._asdict(),
        "feeds_reachable": feeds_problem is None,
        "clock_skew_s": round(skew_s(ledger_health, stream_health), 3),
    }
    del facts["postgres_time"], facts["redis_time_s"]
    (print_json if as_json else print_health)(facts)
    if problems:
        sys.exit(1)


def read_stream_health(streams: Redis, event_shards: int) -> StreamHealth:
    """Return how many events wait, for how long, when the last sweep was, and how much memory Redis has left."""
    shards = range(event_shards)
    pipeline = streams.pipeline(transaction=False)
    pipeline.time()
    pipeline.get(SWEPT)
    pipeline.info("memory")
    pipeline.hgetall(FAILURES)
    queue_backlogs(pipeline, shards)
    (seconds, microseconds), swept, info, noted, *replies = pipeline.execute(raise_on_error=False)
    now_s = seconds + microseconds / 1e6
    backlogs = parse_backlogs(shards, replies)
    memory = info if isinstance(info, dict) else {}
    failures = parse_failures(noted)
    return StreamHealth(
        waiting_events=sum(backlog.length for backlog in backlogs),
        oldest_event_s=round(max(backlog.age_s(now_s) for backlog in backlogs), 3),
        broken_streams=sum(backlog.is_broken for backlog in backlogs),
        last_sweep_s=round(max(0.0, now_s - float(swept)), 3) if isinstance(swept, bytes) else None,
        memory_used=memory.get("used_memory", 0),
        memory_limit=memory.get("maxmemory", 0),
        memory_policy=memory.get("maxmemory_policy", "unknown"),
        failing_shards=len(failures),
        last_failure=failures[0].error if failures else None,
        last_failure_s=round(max(0.0, now_s - failures[0].at_s), 3) if failures else None,
        redis_time_s=now_s,
    )


def check_feeds_redis() -> str | None:
    """Return why the feeds' Redis cannot be used, None if it can."""
    url = require_redis(worker_settings().feeds_redis_url, "FEEDS_REDIS_URL")
    with closing(WorkerConnection(url)) as feeds_redis:
        try:
            feeds_redis.server()
        except FeedsAway as error:
            return str(error).strip().removesuffix(".") or "no answer"
    return None


def find_problems(ledger: LedgerHealth, streams: StreamHealth, max_age: float, max_sweep_age: float) -> list[str]:
    """Return what has stopped, one sentence each."""
    problems = []
    if ledger.postgres_is_standby:
        problems.append("Postgres is a standby, so nothing can be posted: does DATABASE_URL lead to the primary?")
    if streams.oldest_event_s > max_age:
        problems.append(f"An event has waited for {format_age(streams.oldest_event_s)}: is a worker running?")
    if streams.last_sweep_s is None:
        problems.append("There was no sweep yet: are the schedule and a worker running?")
    elif streams.last_sweep_s > max_sweep_age:
        age = format_age(streams.last_sweep_s)
        problems.append(f"There was no sweep for {age}: are the schedule and a worker running?")
    if streams.broken_streams:
        problems.append(f"{count(streams.broken_streams, 'shard')} cannot be read: see `usage-feeds verify`.")
    return problems


def skew_s(ledger: LedgerHealth, streams: StreamHealth) -> float:
    """Return by how many seconds Postgres's clock is ahead of Redis's; the two are read one after the other."""
    return ledger.postgres_time.timestamp() - streams.redis_time_s


def find_warnings(ledger: LedgerHealth, streams: StreamHealth, feeds_problem: str | None) -> list[str]:
    """Return what works but needs attention, one sentence each."""
    warnings = []
    if ledger.dead_letters:
        warnings.append(f"{count(ledger.dead_letters, 'dead letter')}: see `usage-feeds dead list`.")
    if streams.last_failure_s is not None:
        shards = count(streams.failing_shards, "shard")
        age = format_age(streams.last_failure_s)
        warnings.append(f"{shards} could not be posted, the last one {age} ago: {streams.last_failure}.")
    if streams.memory_limit and streams.memory_used > FULL * streams.memory_limit:
        part = streams.memory_used / streams.memory_limit
        warnings.append(f"Redis has used {part:.0%} of its memory: once it is full it takes no more events.")
    if streams.memory_limit and streams.memory_policy not in {"noeviction", "unknown"}:
        warnings.append(f"Redis may evict ({streams.memory_policy}), and events with it: set noeviction.")
    if abs(skew_s(ledger, streams)) > SKEW_TOLERATED.total_seconds():
        ahead = "ahead of" if skew_s(ledger, streams) > 0 else "behind"
        age = format_age(abs(skew_s(ledger, streams)))
        warnings.append(f"Postgres's clock is {age} {ahead} Redis's: synchronise the clocks of their machines.")
    if feeds_problem is not None:
        warnings.append(f"The feeds' Redis cannot be used, pages come from Postgres: {feeds_problem}.")
    return warnings


def print_health(facts: dict[str, Any]) -> None:
    """Print the facts, then the warnings and problems."""
    limit = f" of {facts['memory_limit'] / 2**20:,.0f}" if facts["memory_limit"] else ""
    oldest = f", the oldest for {format_age(facts['oldest_event_s'])}" if facts["waiting_events"] else ""
    print_facts(
        {
            "last batch": format_ago(facts["last_batch_s"]),
            "last sweep": format_ago(facts["last_sweep_s"]),
            "waiting": count(facts["waiting_events"], "event") + oldest,
            "dead letters": facts["dead_letters"],
            "Redis memory": f"{facts['memory_used'] / 2**20:,.0f}{limit} MiB",
            "cached feeds": "reachable" if facts["feeds_reachable"] else "out of reach",
        }
    )
    for warning in facts["warnings"]:
        click.echo(f"Warning: {warning}")
    for problem in facts["problems"]:
        click.echo(f"Unhealthy: {problem}")
    if facts["healthy"]:
        click.echo("Healthy.")


def format_ago(age_s: float | None) -> str:
    """Return how long ago something happened, as text; None means never."""
    return "never" if age_s is None else f"{format_age(age_s)} ago"


def format_age(age_s: float) -> str:
    """Return a number of seconds as text for people."""
    if age_s < 120:
        return f"{age_s:.1f} s"
    return f"{age_s / 60:,.0f} min" if age_s < 7200 else f"{age_s / 3600:,.1f} h"
