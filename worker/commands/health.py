"""`health`."""

import sys

import click
from redis import Redis

from feeds.queries import load_queries
from worker.commands.output import json_option, show_document, show_facts
from worker.commands.servers import open_ledger, open_streams
from worker.streams import stream_of

SQL = load_queries(__file__)


@click.command()
@click.option("--max-age", type=float, default=30, show_default=True, help="How many seconds an event may wait.")
@json_option
def health(*, max_age: float, as_json: bool) -> None:
    """Show what waits in the streams and when a batch was last posted; exit 1 if an event waits too long."""
    with open_ledger() as (connection, ledger), open_streams() as redis:
        [(last_batch_at, dead_letters)] = connection.execute(SQL["read_health"]).fetchall()
        waiting, oldest_s, broken = read_streams(redis, ledger.event_shards)
    healthy = oldest_s <= max_age and not broken
    facts = {
        "healthy": healthy,
        "waiting_events": waiting,
        "oldest_event_s": round(oldest_s, 3),
        "broken_streams": broken,
        "last_batch_at": last_batch_at,
        "dead_letters": dead_letters,
    }
    (show_document if as_json else show_facts)(facts)
    if not healthy:
        sys.exit(1)


def read_streams(redis: Redis, event_shards: int) -> tuple[int, float, int]:
    """Return how many events wait, how old the oldest is in seconds by Redis's clock, how many keys are no streams."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    for shard in range(event_shards):
        pipeline.xlen(stream_of(shard))
        pipeline.xrange(stream_of(shard), count=1)
    (seconds, microseconds), *found = pipeline.execute(raise_on_error=False)
    lengths, oldest = found[0::2], [entries for entries in found[1::2] if isinstance(entries, list)]
    oldest_ms = [int(entries[0][0].split(b"-")[0]) for entries in oldest if entries]
    waiting = sum(length for length in lengths if isinstance(length, int))
    return waiting, age_s(seconds + microseconds / 1e6, oldest_ms), len(lengths) - len(oldest)


def age_s(now: float, oldest_ms: list[int]) -> float:
    """Return the age of the oldest entry. Ids may lie in the future: clocks step back, producers make them up."""
    return max(0.0, *(now - ms / 1000 for ms in oldest_ms)) if oldest_ms else 0.0
