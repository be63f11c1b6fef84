"""How does a test post real events and cache all feeds of their organisations?"""

import asyncio
from functools import partial

import psycopg

from feeds.cached.epoch import fetch_epoch
from feeds.cached.reader import CachedFeeds
from feeds.page import count_feeds, filter_of, place_page
from feeds.postgres import Postgres
from feeds.read_through import Feeds, read
from feeds.schema import check_ledger
from feeds.single_flight import SingleFlight
from feeds.store import Store
from worker.intake.batch import Intake
from worker.intake.drain import drain_all
from worker.intake.streams import connect
from worker.process import publish
from worker.producer import Producer
from worker.settings import worker_settings

KINDS = ("ai_usage", "tm_usage")
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
FEEDS = [filter_of(number, KINDS) for number in range(count_feeds(KINDS))]
HISTORY = (
    ("grant", "g", {"credits": 10, "source": "plan"}),
    ("usage", "u1", {"usage_kind": "ai_usage", "credits": 4}),
    ("usage", "u2", {"usage_kind": "tm_usage", "credits": 3}),
    ("usage", "u3", {"usage_kind": "ai_usage", "credits": 5}),
)
MOVEMENTS = 5
"""How many movements the history causes: u3 draws and overflows."""


def drain(environment, publish=publish):
    """Post what waits, and publish it."""
    with (
        psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection,
        connect(environment["REDIS_URL"]) as streams,
    ):
        drain_all(Intake(connection, streams, check_ledger(connection, worker_settings()), publish, lambda: None))


def add(environment, org_id, suffix=""):
    """Add the history of an organisation to the streams; `suffix` makes its refs new."""
    with Producer(environment["REDIS_URL"]) as producer:
        producer.send(
            [{"type": type_, "org_id": org_id, f"{type_}_ref": ref + suffix, **more} for type_, ref, more in HISTORY]
        )


async def read_all(environment, org_ids, stop):
    """Read all feeds of organisations as an endpoint does, at least once, until `stop` returns true."""
    postgres = Postgres(environment["DATABASE_URL"], deadline_s=10)
    try:
        async with CachedFeeds(environment["REDIS_URL"], partial(fetch_epoch, postgres)) as cache:
            cache.multiplexer.reply_within_s = 5
            feeds = Feeds(Store(postgres, NUMBERS), SingleFlight(), cache)
            while True:
                for org_id in org_ids:
                    for feed in FEEDS:
                        await read(feeds, org_id, feed, place_page(1, 20))
                if stop():
                    return
    finally:
        await postgres.close()


def warm(environment, *org_ids):
    """Cache all feeds of organisations."""
    asyncio.run(read_all(environment, org_ids, lambda: True))
