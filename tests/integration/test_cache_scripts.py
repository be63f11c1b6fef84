"""The Lua scripts on a real server do what tests/unit/cache_model.py says, command by command."""

import asyncio

import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.cached import writer
from feeds.cached.format import hash_key, list_key, make_stamp
from feeds.cached.reader import CachedFeeds
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import Kind
from tests.integration.feed_ledger import ORG, FeedLedger, read_from
from tests.unit import cache_model as model

FEEDS = (0, 2)
WINDOW = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["post", "publish"]), st.sampled_from([Kind.ALLOT, Kind.CONSUME]), st.integers(1, 6)),
        st.tuples(st.just("append"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["refill", "refill", "fence", "put", "lose_list"]), st.sampled_from(FEEDS)),
        st.tuples(st.sampled_from(["append_rest", "read", "drop", "lose_hash", "flush"])),
    ),
    min_size=5,
    max_size=30,
)


class Both:
    """Does each step with the model and with the real server."""

    def __init__(self, cache, feeds_redis, client, ledger):
        self.cache, self.feeds_redis, self.client, self.ledger = cache, feeds_redis, client, ledger
        self.key = hash_key(make_stamp(ledger.epoch, feeds_redis.server()), ORG)
        self.model = model.Cache()
        self.gen = self.gens = 0
        self.last_fence = None
        self.slices = {}
        self.batches = []

    async def post(self, kind, count):
        self.batches.append(self.ledger.post(ORG, count, kind))

    async def publish(self, kind, count):
        await self.post(kind, count)
        await self.append(len(self.batches) - 1)

    async def refill(self, feed):
        await self.fence(feed)
        await self.read()
        await self.put(feed)

    async def append(self, which):
        if not self.batches:
            return
        self.append_movements(self.batches.pop(which % len(self.batches)))

    async def append_rest(self):
        if self.batches:
            self.append_movements([movement for batch in self.batches for movement in batch])
            self.batches = []

    def append_movements(self, movements):
        writer.append(self.feeds_redis, self.ledger.epoch, {ORG: movements}, window=WINDOW)
        if self.model.has_hash:
            self.model = model.append(self.model, runs(movements), WINDOW)

    async def fence(self, feed):
        self.last_fence = await self.cache.fence(ORG, feed)
        self.gens += 1
        self.model = model.fence(self.model, self.gens)
        self.gen = self.model.gen

    async def read(self):
        self.slices = {feed: await read_from(self.ledger, feed, window=WINDOW) for feed in FEEDS}

    async def put(self, feed):
        if not (self.last_fence and self.slices):
            return
        accepted = await self.cache.put(self.last_fence, feed, self.slices[feed])
        put = model.put(self.model, self.gen, feed, {feed: self.slices[feed].total}, WINDOW)
        assert accepted == (put is not None)
        self.model = put or self.model

    async def drop(self):
        # The drop does not find a list that has lost its count; that list expires.
        orphans = {feed for feed, _ in self.model.lists} - {feed for feed, _ in self.model.counts}
        writer.drop(self.feeds_redis, self.ledger.epoch, [ORG])
        self.model = model.drop(self.model)
        for feed in orphans:
            self.client.unlink(list_key(self.key, feed))

    async def lose_hash(self):
        self.client.unlink(self.key)
        self.model = model.lose_hash(self.model)

    async def lose_list(self, feed):
        self.client.unlink(list_key(self.key, feed))
        self.model = model.lose_list(self.model, feed)

    async def flush(self):
        self.client.flushall()
        self.model = model.Cache()

    def read_server(self):
        """Return what the server holds, in the form of the model."""
        fields = self.client.hgetall(self.key)
        sealed = {field: int(value.split()[0]) for field, value in fields.items() if field != b"gen"}
        lists = {
            key: tuple(int(element.split()[0]) for element in self.client.lrange(key, 0, -1))
            for key in self.client.scan_iter(self.key + b":*")
        }
        timed = {key for key in self.client.scan_iter() if self.client.pttl(key) > 0}
        return model.Cache(
            gen=self.model.gen if b"gen" in fields else None,
            counts=tuple(sorted((int(field), count) for field, count in sealed.items() if field[:1] != b"~")),
            floors=tuple(sorted((int(field[1:]), count) for field, count in sealed.items() if field[:1] == b"~")),
            lists=tuple(sorted((number(key), items) for key, items in lists.items())),
            timed=frozenset("hash" if key == self.key else number(key) for key in timed),
        )


def runs(movements):
    """Return what enters a window of each feed of these movements: the last of them without a gap."""
    ordinals = {}
    for feed in {feed for movement in movements for feed in movement.ordinals}:
        of_feed = [movement.ordinals[feed] for movement in movements if feed in movement.ordinals]
        first = last = of_feed[-1]
        while first - 1 in of_feed:
            first -= 1
        ordinals[feed] = range(first, last + 1)[-WINDOW:]
    return ordinals


def number(key):
    return int(key.rpartition(b":")[2])


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_the_scripts_do_what_the_model_does(valkey_url, steps):
    async def play():
        ledger, feeds_redis = FeedLedger(), WorkerConnection(valkey_url)
        with redis.Redis.from_url(valkey_url) as client:
            client.flushall()
            async with CachedFeeds(valkey_url, ledger.fetch_epoch, window=WINDOW) as cache:
                both = Both(cache, feeds_redis, client, ledger)
                for name, *arguments in steps:
                    await getattr(both, name)(*arguments)
                    assert both.read_server() == both.model
        feeds_redis.close()

    asyncio.run(play())
