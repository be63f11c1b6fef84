"""The rules of the cached feeds, in plain Python.

It models one organisation. An item is its ordinal, and a feed of n movements is 1 … n. `without` names a rule to leave
out, so that a test can show why the rule is needed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

RULES = {
    "append: only to a hash that has its gen",
    "append: only above the count",
    "append: a gap deletes the list",
    "append: an absent count leaves a floor",
    "append: a floor is not a count",
    "append: trims to the window",
    "append: a new list takes over the time to live",
    "append: after the commit",
    "append: looks for the hash after the commit",
    "refill: makes sure of the hash before it reads",
    "refill: the hash has a time to live",
    "refill: only under the gen it saw",
    "refill: never over a newer count",
    "refill: never over a newer floor",
    "refill: only its own feed",
    "refill: replaces the list",
    "refill: the list has a time to live",
    "repeat: drops the organisation",
    "drop: removes the counts",
}


class Cache(NamedTuple):
    """What Redis holds of one organisation. `timed`: the keys that have a time to live ("hash", or a feed)."""

    gen: int | None = None
    counts: tuple[tuple[int, int], ...] = ()
    floors: tuple[tuple[int, int], ...] = ()
    lists: tuple[tuple[int, tuple[int, ...]], ...] = ()
    timed: frozenset[object] = frozenset()

    @property
    def has_hash(self) -> bool:
        return self.gen is not None or bool(self.counts) or bool(self.floors)

    def count(self, feed: int) -> int | None:
        return dict(self.counts).get(feed)

    def floor(self, feed: int) -> int:
        return dict(self.floors).get(feed, 0)

    def list(self, feed: int) -> tuple[int, ...]:
        return dict(self.lists).get(feed, ())


def changed(cache: Cache, feed: int, count: int | None, items: Sequence[int]) -> Cache:
    """Return the cache with another count and list of one feed."""
    counts, lists = dict(cache.counts), dict(cache.lists)
    timed = cache.timed
    if count is not None:
        counts[feed] = count
    if items:
        lists[feed] = tuple(items)
    else:
        lists.pop(feed, None)
        timed -= {feed}
    return cache._replace(counts=tuple(sorted(counts.items())), lists=tuple(sorted(lists.items())), timed=timed)


def with_floor(cache: Cache, feed: int, floor: int) -> Cache:
    """Return the cache with another floor for one feed."""
    floors = {**dict(cache.floors), feed: floor}
    return cache._replace(floors=tuple(sorted((feed, floor) for feed, floor in floors.items() if floor)))


def append(cache: Cache, batch: Mapping[int, range], window: int, without: str = "") -> Cache:
    """Add movements. `batch` holds their ordinals for each feed that they belong to."""
    if cache.gen is None and without != "append: only to a hash that has its gen":
        return cache._replace(counts=(), floors=(), timed=cache.timed - {"hash"})
    for feed, ordinals in batch.items():
        cache = append_to(cache, feed, ordinals, window, without)
    return cache


def append_to(cache: Cache, feed: int, ordinals: range, window: int, without: str) -> Cache:
    """Add movements to one feed."""
    count, items, last = cache.count(feed), cache.list(feed), ordinals[-1]
    if count is None:
        if without == "append: a floor is not a count":
            return changed(cache, feed, last, ())
        floor = 0 if without == "append: an absent count leaves a floor" else max(last, cache.floor(feed))
        return with_floor(cache, feed, floor)
    if last <= count and without != "append: only above the count":
        return cache
    gap = ordinals[0] > count + 1
    listed = count == 0 or bool(items)
    if gap and without != "append: a gap deletes the list":
        items, listed = (), listed and len(ordinals) >= window
    if not listed:
        return changed(cache, feed, last, ())
    new = [ordinal for ordinal in ordinals if ordinal > count or without == "append: only above the count"]
    is_new_list = not items
    items = (*items, *new)
    if without != "append: trims to the window":
        items = items[-window:]
    cache = changed(cache, feed, last, items)
    if is_new_list and without != "append: a new list takes over the time to live":
        cache = cache._replace(timed=cache.timed | ({feed} if "hash" in cache.timed else set()))
    return cache


def fence(cache: Cache, gen: int, without: str = "") -> Cache:
    """Make sure that the hash exists, as a reader does before it reads Postgres. A new hash gets this `gen`."""
    if cache.gen is None:
        cache = cache._replace(gen=gen)
    return cache if without == "refill: the hash has a time to live" else cache._replace(timed=cache.timed | {"hash"})


def put(
    cache: Cache, gen: int | None, feed: int, totals: Mapping[int, int], window: int, without: str = ""
) -> Cache | None:
    """Put a feed as it was read from Postgres; None if that is refused. `totals` are the counts that were read."""
    if cache.gen != gen and without != "refill: only under the gen it saw":
        return None
    count, total = cache.count(feed), totals[feed]
    if count is not None and count > total and without != "refill: never over a newer count":
        return None
    if cache.floor(feed) > total and without != "refill: never over a newer floor":
        return None
    cache = with_floor(cache, feed, 0)
    items = range(max(1, total - window + 1), total + 1)
    before = cache.list(feed) if without == "refill: replaces the list" else ()
    cache = changed(cache, feed, total, (*before, *items))
    if without == "refill: only its own feed":
        for other, count in totals.items():
            cache = changed(cache, other, count, cache.list(other))
    if items and without != "refill: the list has a time to live":
        cache = cache._replace(timed=cache.timed | {feed})
    return cache


def drop(cache: Cache, without: str = "") -> Cache:
    """Unlink the organisation's feeds."""
    left = cache if without == "drop: removes the counts" else lose_hash(cache)
    return left._replace(lists=(), timed=left.timed & {"hash"})


def lose_hash(cache: Cache) -> Cache:
    """Return the cache after the hash was evicted, or has expired."""
    return cache._replace(gen=None, counts=(), floors=(), timed=cache.timed - {"hash"})


def lose_list(cache: Cache, feed: int) -> Cache:
    """Return the cache after a list was evicted, or has expired."""
    return changed(cache, feed, None, ())


def faults(cache: Cache, window: int, published: Mapping[int, int], committed: Mapping[int, int]) -> list[str]:
    """Return what is wrong with the pages that a reader may get now, and with what is cached.

    Args:
        cache: What Redis holds.
        window: How many items a list may have.
        published: For each feed, the highest ordinal that every read must include.
        committed: For each feed, the highest ordinal in Postgres.
    """
    wrong = []
    for feed, count in cache.counts:
        items = cache.list(feed)
        if count < published[feed]:
            wrong.append(f"feed {feed} is stale: {count} < {published[feed]}")
        if count > committed[feed]:
            wrong.append(f"feed {feed} is ahead: {count} > {committed[feed]}")
        if items and items != tuple(range(count - len(items) + 1, count + 1)):
            wrong.append(f"feed {feed} is torn: {items} at {count}")
        if len(items) > window:
            wrong.append(f"feed {feed} is larger than its window: {items}")
    keys = {"hash"} if cache.has_hash else set()
    if untimed := (keys | {feed for feed, _ in cache.lists}) - cache.timed:
        wrong.append(f"never expires: {untimed}")
    return wrong
