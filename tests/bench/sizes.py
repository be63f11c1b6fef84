"""How many bytes does a movement take, in Postgres and in Redis?"""

from typing import NamedTuple

import psycopg
from redis import Redis

from tests.bench.ground import Ground

RELATIONS = """
    SELECT c.relname, pg_total_relation_size(c.oid) - pg_indexes_size(c.oid)
    FROM pg_class AS c WHERE c.oid = 'movements'::regclass
    UNION ALL
    SELECT i.relname, pg_relation_size(i.oid)
    FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid WHERE x.indrelid = 'movements'::regclass
"""


class Sizes(NamedTuple):
    """Bytes a movement, of the table and of each index, and in all; bytes an entry of the cached lists, if any."""

    movements: int
    each: dict[str, float]
    bytes_per_movement: float
    bytes_per_cached_entry: float | None


def measure_sizes(ground: Ground) -> Sizes:
    """Measure a ledger and what is cached of it, as they are."""
    with psycopg.connect(ground.database_url) as connection:
        [(movements,)] = connection.execute("SELECT count(*) FROM movements").fetchall()
        each = {name: size / movements for name, size in connection.execute(RELATIONS)}
    return Sizes(movements, each, sum(each.values()), measure_cache(ground))


def measure_cache(ground: Ground) -> float | None:
    """Return what Redis itself says that the cached lists use, by entry."""
    with Redis.from_url(ground.redis_url) as redis:
        lists = list(redis.scan_iter("feeds:*}:*", count=1000))
        if not lists:
            return None
        with redis.pipeline(transaction=False) as pipeline:
            for key in lists:
                pipeline.memory_usage(key, samples=0)
                pipeline.llen(key)
            answers = pipeline.execute()
    entries = sum(answers[1::2])
    return sum(answers[::2]) / entries if entries else None
