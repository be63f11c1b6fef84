"""The rules of the cached feed, in plain Python.

One organisation. An entry is its ordinal; a feed's truth is 1 … n. `without` names a rule to leave out, so that
a test can show what it is for.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

RULES = {
    "append: only to a hash that has its gen",
    "append: above the count alone",
    "append: a gap deletes the list",
    "append: an absent count leaves a floor",
    "append: a floor is no count",
    "append: trims to the window",
    "append: a new list takes over the time to live",
    "append: after the commit",
    "append: looks for readers after the commit",
    "refill: makes sure of the hash before it reads",
    "refill: the hash has a time to live",
    "refill: only under the gen it saw",
    "refill: never over a newer count",
    "refill: never over a newer floor",
    "refill: its own feed alone",
    "refill: replaces the list",
    "refill: the list has a time to live",
    "repeat: drops the organisation",
    "drop: takes the counts",
}


class Cache(NamedTuple):
    """What Redis holds of one organisation. `timed`: the keys that have a time to live ("hash", or a feed)."""

    gen: int | None = None
    counts: tuple[tuple[int, int], ...] = ()
    floors: tuple[tuple[int, int], ...] = ()
    lists: tuple[tuple[int, tuple[int, ...]], ...] = ()
    timed: frozenset[object] = frozenset()

    @property
    def warm(self) -> bool:
        return self.gen is not None or bool(self.counts) or bool(self.floors)

    def count(self, feed: int) -> int | None:
        return dict(self.counts).get(feed)

    def floor(self, feed: int) -> int:
        return dict(self.floors).get(feed, 0)

    def list(self, feed: int) -> tuple[int, ...]:
        return dict(self.lists).get(feed, ())


def changed(cache: Cache, feed: int, count: int | None, entries: Sequence[int]) -> Cache:
    """Return the cache with another count and list of one feed."""
    counts, lists = dict(cache.counts), dict(cache.lists)
    timed = cache.timed
    if count is not None:
        counts[feed] = count
    if entries:
        lists[feed] = tuple(entries)
    else:
        lists.pop(feed, None)
        timed -= {feed}
    return cache._replace(counts=tuple(sorted(counts.items())), lists=tuple(sorted(lists.items())), timed=timed)


def with_floor(cache: Cache, feed: int, floor: int) -> Cache:
    """Return the cache with another floor under one feed."""
    floors = {**dict(cache.floors), feed: floor}
    return cache._replace(floors=tuple(sorted((feed, floor) for feed, floor in floors.items() if floor)))


def append(cache: Cache, batch: Mapping[int, range], window: int, without: str = "") -> Cache:
    """Add movements: for each feed that they touch, their ordinals."""
    if cache.gen is None and without != "append: only to a hash that has its gen":
        return cache._replace(counts=(), floors=(), timed=cache.timed - {"hash"})
    for feed, ordinals in batch.items():
        cache = append_to(cache, feed, ordinals, window, without)
    return cache


def append_to(cache: Cache, feed: int, ordinals: range, window: int, without: str) -> Cache:
    """Add movements to one feed."""
    count, held, last = cache.count(feed), cache.list(feed), ordinals[-1]
    if count is None:
        if without == "append: a floor is no count":
            return changed(cache, feed, last, ())
        floor = 0 if without == "append: an absent count leaves a floor" else max(last, cache.floor(feed))
        return with_floor(cache, feed, floor)
    if last <= count and without != "append: above the count alone":
        return cache
    gap = ordinals[0] > count + 1
    listed = count == 0 or bool(held)
    if gap and without != "append: a gap deletes the list":
        held, listed = (), listed and len(ordinals) >= window
    if not listed:
        return changed(cache, feed, last, ())
    new = [ordinal for ordinal in ordinals if ordinal > count or without == "append: above the count alone"]
    made = not held
    held = (*held, *new)
    if without != "append: trims to the window":
        held = held[-window:]
    cache = changed(cache, feed, last, held)
    if made and without != "append: a new list takes over the time to live":
        cache = cache._replace(timed=cache.timed | ({feed} if "hash" in cache.timed else set()))
    return cache


def ensure(cache: Cache, gen: int, without: str = "") -> Cache:
    """Make sure of the hash, as a reader does before it reads Postgres; a new one gets this `gen`."""
    if cache.gen is None:
        cache = cache._replace(gen=gen)
    return cache if without == "refill: the hash has a time to live" else cache._replace(timed=cache.timed | {"hash"})


def put(
    cache: Cache, gen: int | None, feed: int, totals: Mapping[int, int], window: int, without: str = ""
) -> Cache | None:
    """Put a feed as Postgres said; None if it is refused. `totals` are the counts that were read."""
    if cache.gen != gen and without != "refill: only under the gen it saw":
        return None
    count, total = cache.count(feed), totals[feed]
    if count is not None and count > total and without != "refill: never over a newer count":
        return None
    if cache.floor(feed) > total and without != "refill: never over a newer floor":
        return None
    cache = with_floor(cache, feed, 0)
    entries = range(max(1, total - window + 1), total + 1)
    held = cache.list(feed) if without == "refill: replaces the list" else ()
    cache = changed(cache, feed, total, (*held, *entries))
    if without == "refill: its own feed alone":
        for other, count in totals.items():
            cache = changed(cache, other, count, cache.list(other))
    if entries and without != "refill: the list has a time to live":
        cache = cache._replace(timed=cache.timed | {feed})
    return cache


def drop(cache: Cache, without: str = "") -> Cache:
    """Unlink the organisation's feeds."""
    kept = cache if without == "drop: takes the counts" else lose_hash(cache)
    return kept._replace(lists=(), timed=kept.timed & {"hash"})


def lose_hash(cache: Cache) -> Cache:
    """The hash is evicted, or expires."""
    return cache._replace(gen=None, counts=(), floors=(), timed=cache.timed - {"hash"})


def lose_list(cache: Cache, feed: int) -> Cache:
    """A list is evicted, or expires."""
    return changed(cache, feed, None, ())


def faults(cache: Cache, window: int, shown: Mapping[int, int], truth: Mapping[int, int]) -> list[str]:
    """Return what is wrong: with what a reader may be served now, and with what is kept.

    `shown`: per feed, the greatest ordinal that every read must show; `truth`: what is committed.
    """
    wrong = []
    for feed, count in cache.counts:
        held = cache.list(feed)
        if count < shown[feed]:
            wrong.append(f"feed {feed} is stale: {count} < {shown[feed]}")
        if count > truth[feed]:
            wrong.append(f"feed {feed} is ahead: {count} > {truth[feed]}")
        if held and held != tuple(range(count - len(held) + 1, count + 1)):
            wrong.append(f"feed {feed} is torn: {held} at {count}")
        if len(held) > window:
            wrong.append(f"feed {feed} outgrows its window: {held}")
    kept = {"hash"} if cache.warm else set()
    if for_ever := (kept | {feed for feed, _ in cache.lists}) - cache.timed:
        wrong.append(f"kept for ever: {for_ever}")
    return wrong
