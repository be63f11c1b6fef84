"""Every interleaving of posting, reading and loss, up to a stated depth: are the rules enough, and is each needed?

Three commits in two feeds are published by three drains in any order. One of the drains may die before it has published;
then another one repeats its work. Two readers refill without end. Two losses (of the hash, of a list, or of everything)
happen at any moment. In every state the test checks what a reader would get.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import pytest

from tests.unit import cache_model as model
from tests.unit.cache_model import RULES, Cache

WINDOW = 2
FEEDS = (0, 1)
COMMITS: tuple[dict[int, range], ...] = (
    {0: range(1, 2), 1: range(1, 2)},
    {0: range(2, 3)},
    {0: range(3, 4), 1: range(2, 3)},
)


NO_GEN, THE_GEN = 0, 1
"""A lost `gen` never returns, so all that are not the hash's present one are alike."""


class Reader(NamedTuple):
    """How far a refill is: idle, has a fence, or has read Postgres."""

    feed: int
    step: str = "idle"
    gen: int = NO_GEN
    totals: tuple[int, int] = (0, 0)


class World(NamedTuple):
    """Everything that decides what may happen next."""

    cache: Cache
    drains: tuple[str, ...]
    readers: tuple[Reader, ...]
    losses: int
    deaths: int


def totals_after(commits: int) -> dict[int, int]:
    """Return how many movements the feeds have after the first commits."""
    return {feed: max((c[feed][-1] for c in COMMITS[:commits] if feed in c), default=0) for feed in FEEDS}


TOTALS = [totals_after(commits) for commits in range(len(COMMITS) + 1)]


@cache
def committed(drains: tuple[str, ...]) -> int:
    """Return how many drains have committed."""
    return sum(step not in {"new", "hash?", "no hash?", "early"} for step in drains)


@cache
def published(drains: tuple[str, ...]) -> dict[int, int]:
    """Return, for each feed, the highest ordinal whose event was deleted from its stream."""
    done = [commit for commit, step in zip(COMMITS, drains, strict=True) if step == "done"]
    return {feed: max((commit[feed][-1] for commit in done if feed in commit), default=0) for feed in FEEDS}


def steps(world: World, without: str) -> Iterator[World]:
    """Return every world that follows from this one by one step of one drain, reader or loss."""
    for i in range(len(COMMITS)):
        yield from drain(world, i, without)
    for i in range(len(world.readers)):
        yield from read(world, i, without)
    if world.losses:
        for left in lost(world.cache):
            yield world._replace(cache=left, losses=world.losses - 1)


def drain(world: World, i: int, without: str) -> Iterator[World]:
    """One drain: commit, look for the hash, append, delete the entries; or die, and be repeated at any time."""

    def at(step: str, after: Cache = world.cache, deaths: int = world.deaths) -> World:
        drains = (*world.drains[:i], step, *world.drains[i + 1 :])
        return World(after, drains, world.readers, world.losses, deaths)

    match world.drains[i]:
        case "new" | "hash?" | "no hash?" | "early":
            yield from before_commit(world, i, without, at)
        case "committed":
            # Without a hash there is nothing to append to: the drain is done.
            yield at("hash" if world.cache.has_hash else "done")
            if world.deaths:
                yield at("done", repeated(world.cache, without), world.deaths - 1)
        case "hash":
            yield at("done", appended(world.cache, i, without))
            if world.deaths:
                yield at("dead", appended(world.cache, i, without), world.deaths - 1)
        case "dead":
            yield at("done", repeated(world.cache, without))


def before_commit(world: World, i: int, without: str, at: Callable[..., World]) -> Iterator[World]:
    """The first steps of one drain, with the wrong ones that a missing rule allows."""
    step, is_next = world.drains[i], committed(world.drains) == i
    if without == "append: looks for the hash after the commit" and step == "new":
        yield at("hash?" if world.cache.has_hash else "no hash?")
    elif without == "append: after the commit" and step == "new":
        if is_next and "early" not in world.drains:
            yield at("early", appended(world.cache, i, without))
    elif is_next:
        yield at({"new": "committed", "hash?": "hash", "no hash?": "done", "early": "done"}[step])


def read(world: World, i: int, without: str) -> Iterator[World]:
    """One reader after a miss: fence, read Postgres, put; whether or not the put is refused, it starts again."""
    reader = world.readers[i]

    def at(changed: Reader, after: Cache = world.cache) -> World:
        readers = (*world.readers[:i], changed, *world.readers[i + 1 :])
        return World(after, world.drains, readers, world.losses, world.deaths)

    late = without == "refill: makes sure of the hash before it reads"
    totals = TOTALS[committed(world.drains)]
    read_now = (totals[0], totals[1])
    match reader.step:
        case "idle" if late:
            yield at(reader._replace(step="fenced", totals=read_now))
        case "fenced" if late:
            fenced = model.fence(world.cache, THE_GEN, without)
            yield at(reader._replace(step="has read", gen=THE_GEN), fenced)
        case "idle":
            fenced = model.fence(world.cache, THE_GEN, without)
            yield at(reader._replace(step="fenced", gen=THE_GEN), fenced)
        case "fenced":
            yield at(reader._replace(step="has read", totals=read_now))
        case "has read":
            after = put(world.cache, reader, without)
            yield at(Reader(reader.feed), world.cache if after is None else after)


@cache
def faults(before: Cache, drains: tuple[str, ...]) -> list[str]:
    """Return what is wrong in such a world."""
    return model.faults(before, WINDOW, published(drains), TOTALS[committed(drains)])


@cache
def appended(before: Cache, i: int, without: str) -> Cache:
    return model.append(before, COMMITS[i], WINDOW, without)


@cache
def repeated(before: Cache, without: str) -> Cache:
    return before if without == "repeat: drops the organisation" else model.drop(before, without)


@cache
def put(before: Cache, reader: Reader, without: str) -> Cache | None:
    return model.put(before, reader.gen, reader.feed, dict(enumerate(reader.totals)), WINDOW, without)


@cache
def lost(before: Cache) -> set[Cache]:
    """Return what one loss may leave."""
    left = {model.lose_hash(before), *(model.lose_list(before, feed) for feed in FEEDS), Cache()}
    return left - {before}


def normalised(world: World) -> World:
    """Return one world for all worlds that differ only in the order of readers or in a `gen` that is lost."""
    readers = world.readers
    if world.cache.gen is None:
        readers = tuple(reader._replace(gen=NO_GEN) if reader.gen else reader for reader in readers)
    return World(world.cache, world.drains, tuple(sorted(readers)), world.losses, world.deaths)


def explore(readers: tuple[int, ...], losses: int = 2, deaths: int = 1, without: str = "") -> tuple[int, list[str]]:
    """Visit every world. Return how many there are, and the faults of the first world that has any."""
    start = World(Cache(), ("new",) * len(COMMITS), tuple(Reader(feed) for feed in readers), losses, deaths)
    known, frontier = {start}, [start]
    while frontier:
        world = frontier.pop()
        if wrong := faults(world.cache, world.drains):
            return len(known), wrong
        for following in map(normalised, steps(world, without)):
            if following not in known:
                known.add(following)
                frontier.append(following)
    return len(known), []


@pytest.mark.parametrize(
    ("readers", "losses", "deaths"), [((0, 0), 1, 1), ((1, 1), 1, 1), ((0, 1), 2, 0), ((0, 1), 0, 1)]
)
def test_no_interleaving_serves_a_stale_or_torn_page(readers, losses, deaths):
    worlds, wrong = explore(readers, losses, deaths)

    assert not wrong
    assert worlds > 15_000


@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_rule_is_needed(rule):
    assert any(explore(readers, without=rule)[1] for readers in ((0, 0), (0, 1)))
