"""Every interleaving of posting, reading and loss, up to a stated depth: are the rules enough, and is each needed?

Three commits in two feeds, shown by three drains in any order (one of which may die in between and be repeated by
another), two readers who refill without end, and two losses (the hash, a list, or all) at any moment. What a reader
would be served is judged in every state.
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
"""A `gen` never comes back: all that are not the hash's are alike."""


class Reader(NamedTuple):
    """Where a refill stands: not begun (or again), sure of the hash, has read Postgres."""

    feed: int
    step: str = "idle"
    gen: int = NO_GEN
    totals: tuple[int, int] = (0, 0)


class World(NamedTuple):
    """All that decides what may happen next."""

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
    return sum(step not in {"new", "warm?", "cold?", "early"} for step in drains)


@cache
def shown(drains: tuple[str, ...]) -> dict[int, int]:
    """Return, per feed, the greatest ordinal whose event has left its stream."""
    done = [commit for commit, step in zip(COMMITS, drains, strict=True) if step == "done"]
    return {feed: max((commit[feed][-1] for commit in done if feed in commit), default=0) for feed in FEEDS}


def steps(world: World, without: str) -> Iterator[World]:
    """Return every world that one step of anybody makes of this one."""
    for i in range(len(COMMITS)):
        yield from drain(world, i, without)
    for i in range(len(world.readers)):
        yield from read(world, i, without)
    if world.losses:
        for left in lost(world.cache):
            yield world._replace(cache=left, losses=world.losses - 1)


def drain(world: World, i: int, without: str) -> Iterator[World]:
    """One drain: commit, look whether anybody reads, append, delete the entries; or die and be repeated at any time."""

    def at(step: str, held: Cache = world.cache, deaths: int = world.deaths) -> World:
        drains = (*world.drains[:i], step, *world.drains[i + 1 :])
        return World(held, drains, world.readers, world.losses, deaths)

    match world.drains[i]:
        case "new" | "warm?" | "cold?" | "early":
            yield from before_commit(world, i, without, at)
        case "committed":
            # Nothing is left to do for a drain that found nobody: it is done at once.
            yield at("warm" if world.cache.warm else "done")
            if world.deaths:
                yield at("done", repeated(world.cache, without), world.deaths - 1)
        case "warm":
            yield at("done", appended(world.cache, i, without))
            if world.deaths:
                yield at("dead", appended(world.cache, i, without), world.deaths - 1)
        case "dead":
            yield at("done", repeated(world.cache, without))


def before_commit(world: World, i: int, without: str, at: Callable[..., World]) -> Iterator[World]:
    """One drain's first steps, the wrong ones too."""
    step, turn = world.drains[i], committed(world.drains) == i
    if without == "append: looks for readers after the commit" and step == "new":
        yield at("warm?" if world.cache.warm else "cold?")
    elif without == "append: after the commit" and step == "new":
        if turn and "early" not in world.drains:
            yield at("early", appended(world.cache, i, without))
    elif turn:
        yield at({"new": "committed", "warm?": "warm", "cold?": "done", "early": "done"}[step])


def read(world: World, i: int, without: str) -> Iterator[World]:
    """One reader after a miss: make sure of the hash, read Postgres, put; refused or not, again and again."""
    reader = world.readers[i]

    def at(changed: Reader, held: Cache = world.cache) -> World:
        readers = (*world.readers[:i], changed, *world.readers[i + 1 :])
        return World(held, world.drains, readers, world.losses, world.deaths)

    late = without == "refill: makes sure of the hash before it reads"
    totals = TOTALS[committed(world.drains)]
    read_now = (totals[0], totals[1])
    match reader.step:
        case "idle" if late:
            yield at(reader._replace(step="sure", totals=read_now))
        case "sure" if late:
            sure = model.ensure(world.cache, THE_GEN, without)
            yield at(reader._replace(step="has read", gen=THE_GEN), sure)
        case "idle":
            sure = model.ensure(world.cache, THE_GEN, without)
            yield at(reader._replace(step="sure", gen=THE_GEN), sure)
        case "sure":
            yield at(reader._replace(step="has read", totals=read_now))
        case "has read":
            kept = put(world.cache, reader, without)
            yield at(Reader(reader.feed), world.cache if kept is None else kept)


@cache
def faults(held: Cache, drains: tuple[str, ...]) -> list[str]:
    """Return what is wrong in such a world."""
    return model.faults(held, WINDOW, shown(drains), TOTALS[committed(drains)])


@cache
def appended(held: Cache, i: int, without: str) -> Cache:
    return model.append(held, COMMITS[i], WINDOW, without)


@cache
def repeated(held: Cache, without: str) -> Cache:
    return held if without == "repeat: drops the organisation" else model.drop(held, without)


@cache
def put(held: Cache, reader: Reader, without: str) -> Cache | None:
    return model.put(held, reader.gen, reader.feed, dict(enumerate(reader.totals)), WINDOW, without)


@cache
def lost(held: Cache) -> set[Cache]:
    """Return what one loss may leave."""
    left = {model.lose_hash(held), *(model.lose_list(held, feed) for feed in FEEDS), Cache()}
    return left - {held}


def alike(world: World) -> World:
    """Return the one world that stands for all that differ in nothing that matters."""
    readers = world.readers
    if world.cache.gen is None:
        readers = tuple(reader._replace(gen=NO_GEN) if reader.gen else reader for reader in readers)
    return World(world.cache, world.drains, tuple(sorted(readers)), world.losses, world.deaths)


def explore(readers: tuple[int, ...], losses: int = 2, deaths: int = 1, without: str = "") -> tuple[int, list[str]]:
    """Visit every world; return how many there are, and the faults of the first that has any."""
    start = World(Cache(), ("new",) * len(COMMITS), tuple(Reader(feed) for feed in readers), losses, deaths)
    known, frontier = {start}, [start]
    while frontier:
        world = frontier.pop()
        if wrong := faults(world.cache, world.drains):
            return len(known), wrong
        for following in map(alike, steps(world, without)):
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
