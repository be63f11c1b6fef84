"""`health`."""

import sys
from contextlib import closing
from datetime import datetime
from typing import Any, NamedTuple

import click
from redis import Redis

from feeds.cached.format import FeedsAway
from feeds.cached.worker_connection import WorkerConnection
from feeds.queries import load_queries
from worker.commands.output import count, json_option, print_facts, print_json
from worker.commands.servers import open_ledger, open_streams, require_redis
from worker.intake.streams import stream_of
from worker.intake.sweep import SWEPT
from worker.settings import worker_settings

SQL = load_queries(__file__)

FULL = 0.7
"""Beyond this part of its memory Redis needs a look: when it is full it takes no more events."""


class Posting(NamedTuple):
    """What Postgres says of the work."""

    last_batch_at: datetime | None
    last_batch_s: float | None
    dead_letters: int


class Waiting(NamedTuple):
    """What Redis says of the work. Ages are in seconds of its clock, memory in bytes; a limit of 0 is none."""

    waiting_events: int
    oldest_event_s: float
    broken_streams: int
    last_sweep_s: float | None
    memory_used: int
    memory_limit: int
    memory_policy: str


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
    """Show how old the last signs of work are; exit 1 if something stands still.

    That is: an event waits too long (no worker posts), the last sweep is too old (the schedule, which asks for one
    every second, or the worker, which runs it, is away), or a shard's key is no stream. Warnings leave
    the exit code at 0: dead letters, Redis filling up or told to evict, the feeds' Redis out of reach (pages then come
    from Postgres).
    """
    with open_ledger() as (connection, ledger), open_streams() as redis:
        [row] = connection.execute(SQL["read_health"]).fetchall()
        posting = Posting(*row)
        waiting = read_streams(redis, ledger.event_shards)
    feeds_away = ask_feeds()
    problems = find_problems(waiting, max_age, max_sweep_age)
    facts = {
        "healthy": not problems,
        "problems": problems,
        "warnings": find_warnings(posting, waiting, feeds_away),
        **waiting._asdict(),
        **posting._asdict(),
        "feeds_reachable": feeds_away is None,
    }
    (print_json if as_json else show)(facts)
    if problems:
        sys.exit(1)


def read_streams(redis: Redis, event_shards: int) -> Waiting:
    """Return what waits, since when, and what Redis has room for."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.get(SWEPT)
    pipeline.info("memory")
    for shard in range(event_shards):
        pipeline.xlen(stream_of(shard))
        pipeline.xrange(stream_of(shard), count=1)
    (seconds, microseconds), swept, memory, *found = pipeline.execute(raise_on_error=False)
    lengths, oldest = found[0::2], [entries for entries in found[1::2] if isinstance(entries, list)]
    oldest_ms = [int(entries[0][0].split(b"-")[0]) for entries in oldest if entries]
    now = seconds + microseconds / 1e6
    told = memory if isinstance(memory, dict) else {}
    return Waiting(
        waiting_events=sum(length for length in lengths if isinstance(length, int)),
        oldest_event_s=round(age_s(now, oldest_ms), 3),
        broken_streams=len(lengths) - len(oldest),
        last_sweep_s=round(max(0.0, now - float(swept)), 3) if isinstance(swept, bytes) else None,
        memory_used=told.get("used_memory", 0),
        memory_limit=told.get("maxmemory", 0),
        memory_policy=told.get("maxmemory_policy", "unknown"),
    )


def age_s(now: float, oldest_ms: list[int]) -> float:
    """Return the age of the oldest entry. Ids may lie in the future: clocks step back, producers make them up."""
    return max(0.0, *(now - ms / 1000 for ms in oldest_ms)) if oldest_ms else 0.0


def ask_feeds() -> str | None:
    """Return why the feeds' Redis cannot be used, or None where it can."""
    with closing(WorkerConnection(require_redis(worker_settings().feeds_redis_url, "FEEDS_REDIS_URL"))) as link:
        try:
            link.server()
        except FeedsAway as error:
            return str(error).strip().removesuffix(".") or "no answer"
    return None


def find_problems(waiting: Waiting, max_age: float, max_sweep_age: float) -> list[str]:
    """Return what stands still."""
    problems = []
    if waiting.oldest_event_s > max_age:
        problems.append(f"An event has waited for {format_age(waiting.oldest_event_s)}: is a worker running?")
    if waiting.last_sweep_s is None:
        problems.append("There was no sweep yet: are the schedule and a worker running?")
    elif waiting.last_sweep_s > max_sweep_age:
        since = format_age(waiting.last_sweep_s)
        problems.append(f"There was no sweep for {since}: are the schedule and a worker running?")
    if waiting.broken_streams:
        problems.append(f"{count(waiting.broken_streams, 'shard')} cannot be read: see `usage-feeds verify`.")
    return problems


def find_warnings(posting: Posting, waiting: Waiting, feeds_away: str | None) -> list[str]:
    """Return what works, but needs a look."""
    warnings = []
    if posting.dead_letters:
        warnings.append(f"{count(posting.dead_letters, 'dead letter')}: see `usage-feeds dead list`.")
    if waiting.memory_limit and waiting.memory_used > FULL * waiting.memory_limit:
        part = waiting.memory_used / waiting.memory_limit
        warnings.append(f"Redis has used {part:.0%} of its memory: once it is full it takes no more events.")
    if waiting.memory_limit and waiting.memory_policy not in {"noeviction", "unknown"}:
        warnings.append(f"Redis may evict ({waiting.memory_policy}), and events with it: set noeviction.")
    if feeds_away is not None:
        warnings.append(f"The feeds' Redis cannot be used, pages come from Postgres: {feeds_away}.")
    return warnings


def show(facts: dict[str, Any]) -> None:
    """Print the signs of work, then what is wrong."""
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


def format_ago(age: float | None) -> str:
    """Return how long ago something was."""
    return "never" if age is None else f"{format_age(age)} ago"


def format_age(age: float) -> str:
    """Return a number of seconds as a person reads it."""
    if age < 120:
        return f"{age:.1f} s"
    return f"{age / 60:,.0f} min" if age < 7200 else f"{age / 3600:,.1f} h"
