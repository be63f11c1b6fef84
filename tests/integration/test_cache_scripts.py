"""The Lua on a real server does what the model of tests/unit/cache_model.py says, command by command."""

import asyncio

import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.cached import format as proof
from feeds.cached import writer
from feeds.cached.reader import CachedFeeds
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import Kind
from tests.integration.feed_ledger import ORG, FeedLedger
from tests.unit import cache_model as model

FEEDS = (0, 2)
WINDOW = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["post", "show"]), st.sampled_from([Kind.ALLOT, Kind.CONSUME]), st.integers(1, 6)),
        st.tuples(st.just("append"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["refill", "refill", "ensure", "put", "lose_list"]), st.sampled_from(FEEDS)),
        st.tuples(st.sampled_from(["append_rest", "read", "drop", "lose_hash", "flush"])),
    ),
    min_size=5,
    max_size=30,
)


class Both:
    """The model and the real server, side by side."""

    def __init__(self, feeds, link, client, ledger):
        self.feeds, self.link, self.client, self.ledger = feeds, link, client, ledger
        self.key = proof.hash_key(proof.stamp(ledger.epoch, link.server()), ORG)
        self.model = model.Cache()
        self.gen = self.gens = 0
        self.fence = None
        self.slices = {}
        self.batches = []

    async def post(self, kind, count):
        self.batches.append(self.ledger.post(ORG, count, kind))

    async def show(self, kind, count):
        await self.post(kind, count)
        await self.append(len(self.batches) - 1)

    async def refill(self, feed):
        await self.ensure(feed)
        await self.read()
        await self.put(feed)

    async def append(self, which):
        if not self.batches:
            return
        self.append_lines(self.batches.pop(which % len(self.batches)))

    async def append_rest(self):
        if self.batches:
            self.append_lines([movement for batch in self.batches for movement in batch])
            self.batches = []

    def append_lines(self, lines):
        writer.append(self.link, self.ledger.epoch, {ORG: lines}, WINDOW)
        if self.model.warm:
            self.model = model.append(self.model, runs(lines), WINDOW)

    async def ensure(self, feed):
        self.fence = await self.feeds.fence(ORG, feed)
        self.gens += 1
        self.model = model.ensure(self.model, self.gens)
        self.gen = self.model.gen

    async def read(self):
        self.slices = {feed: await self.ledger.reader(ORG, feed, WINDOW)() for feed in FEEDS}

    async def put(self, feed):
        if not (self.fence and self.slices):
            return
        accepted = await self.feeds.put(self.fence, feed, self.slices[feed])
        put = model.put(self.model, self.gen, feed, {feed: self.slices[feed].total}, WINDOW)
        assert accepted == (put is not None)
        self.model = put or self.model

    async def drop(self):
        # What has lost its count is not found: it goes at the end of its time.
        orphans = {feed for feed, _ in self.model.lists} - {feed for feed, _ in self.model.counts}
        writer.drop(self.link, self.ledger.epoch, [ORG])
        self.model = model.drop(self.model)
        for feed in orphans:
            self.client.unlink(proof.list_key(self.key, feed))

    async def lose_hash(self):
        self.client.unlink(self.key)
        self.model = model.lose_hash(self.model)

    async def lose_list(self, feed):
        self.client.unlink(proof.list_key(self.key, feed))
        self.model = model.lose_list(self.model, feed)

    async def flush(self):
        self.client.flushall()
        self.model = model.Cache()

    def held(self):
        """Return what the server holds, as the model would say it."""
        fields = self.client.hgetall(self.key)
        sealed = {field: int(value.split()[0]) for field, value in fields.items() if field != b"gen"}
        lists = {
            key: tuple(int(entry.split()[0]) for entry in self.client.lrange(key, 0, -1))
            for key in self.client.scan_iter(self.key + b":*")
        }
        timed = {key for key in self.client.scan_iter() if self.client.pttl(key) > 0}
        return model.Cache(
            gen=self.model.gen if b"gen" in fields else None,
            counts=tuple(sorted((int(field), count) for field, count in sealed.items() if field[:1] != b"~")),
            floors=tuple(sorted((int(field[1:]), count) for field, count in sealed.items() if field[:1] == b"~")),
            lists=tuple(sorted((number(key), entries) for key, entries in lists.items())),
            timed=frozenset("hash" if key == self.key else number(key) for key in timed),
        )


def runs(lines):
    """Return what a window takes of each feed that these lines touch: the last of them that follow one another."""
    ordinals = {}
    for feed in {feed for line in lines for feed in line.ordinals}:
        of_feed = [line.ordinals[feed] for line in lines if feed in line.ordinals]
        first = last = of_feed[-1]
        while first - 1 in of_feed:
            first -= 1
        ordinals[feed] = range(first, last + 1)[-WINDOW:]
    return ordinals


def number(key):
    return int(key.rpartition(b":")[2])


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_the_scripts_do_as_the_model_says(valkey_url, steps):
    async def play():
        ledger, link = FeedLedger(), WorkerConnection(valkey_url)
        with redis.Redis.from_url(valkey_url) as client:
            client.flushall()
            async with CachedFeeds(valkey_url, ledger.read_epoch, window=WINDOW) as feeds:
                both = Both(feeds, link, client, ledger)
                for name, *arguments in steps:
                    await getattr(both, name)(*arguments)
                    assert both.held() == both.model
        link.close()

    asyncio.run(play())
