"""How does a test post events for real, and have all that comes of them cached?"""

import asyncio
from uuid import UUID

import psycopg

from feeds.cached import writer
from feeds.cached.reader import CachedFeeds
from feeds.page import count_feeds, filter_of, place_page
from feeds.postgres import Postgres
from feeds.read_through import Feeds, read
from feeds.schema import check_ledger
from feeds.single_flight import SingleFlight
from feeds.store import Store
from worker.intake.batch import Intake, drain_all
from worker.intake.streams import connect
from worker.process import show as publish
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
LINES = 5
"""Of the history: u3 draws and overflows."""


def drain(environment, show=publish):
    """Post and show what waits."""
    with (
        psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection,
        connect(environment["REDIS_URL"]) as streams,
    ):
        drain_all(Intake(connection, streams, check_ledger(connection, worker_settings()), show, lambda: None))


def add(environment, org_id, suffix=""):
    with Producer(environment["REDIS_URL"]) as producer:
        producer.send(
            [{"type": type_, "org_id": org_id, f"{type_}_ref": ref + suffix, **more} for type_, ref, more in HISTORY]
        )


async def read_all(environment, org_ids, stop):
    """Read all feeds of organisations as an endpoint does, at least once, until told to stop."""
    postgres = Postgres(environment["DATABASE_URL"], deadline_s=10)

    async def read_epoch():
        [(epoch,)] = await postgres.fetch(writer.SQL["read_epoch"], {})
        return UUID(str(epoch))

    try:
        async with CachedFeeds(environment["REDIS_URL"], read_epoch) as cached:
            cached.multiplexer.reply_within_s = 5
            feeds = Feeds(Store(postgres, NUMBERS), SingleFlight(), cached)
            while True:
                for org_id in org_ids:
                    for feed in FEEDS:
                        await read(feeds, org_id, feed, place_page(1, 20))
                if stop():
                    return
    finally:
        await postgres.close()


def warm(environment, *org_ids):
    asyncio.run(read_all(environment, org_ids, lambda: True))
