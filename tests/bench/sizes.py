"""How many bytes does a movement take, in Postgres and in Redis?"""

from typing import NamedTuple

import psycopg
from redis import Redis

from tests.bench.servers import Servers

RELATIONS = """
    SELECT c.relname, pg_total_relation_size(c.oid) - pg_indexes_size(c.oid)
    FROM pg_class AS c WHERE c.oid = 'movements'::regclass
    UNION ALL
    SELECT i.relname, pg_relation_size(i.oid)
    FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid WHERE x.indrelid = 'movements'::regclass
"""


class Sizes(NamedTuple):
    """Bytes a movement: of the table and of each index, and in total. Bytes an item of the cached lists, if there are any."""

    movements: int
    each: dict[str, float]
    bytes_per_movement: float
    bytes_per_cached_item: float | None


def measure_sizes(servers: Servers) -> Sizes:
    """Measure a ledger and the cached feeds of it."""
    with psycopg.connect(servers.database_url) as connection:
        [(movements,)] = connection.execute("SELECT count(*) FROM movements").fetchall()
        each = {name: size / movements for name, size in connection.execute(RELATIONS)}
    return Sizes(movements, each, sum(each.values()), measure_cache(servers))


def measure_cache(servers: Servers) -> float | None:
    """Return the memory that Redis reports for the cached lists, per item."""
    with Redis.from_url(servers.redis_url) as redis:
        lists = list(redis.scan_iter("feeds:*}:*", count=1000))
        if not lists:
            return None
        with redis.pipeline(transaction=False) as pipeline:
            for key in lists:
                pipeline.memory_usage(key, samples=0)
                pipeline.llen(key)
            answers = pipeline.execute()
    items = sum(answers[1::2])
    return sum(answers[::2]) / items if items else None
