"""How is an entry found that kills the process that posts it?"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.intake.batch import WaitingShard, group_shards
from worker.intake.poison import BATCH_MAX, State, Suspicion, read_suspicion

DEATHS_MAX = 1000


def drain(shards, killers, seed=0):
    """Post the entries of all shards in batches; return the buried entries and the number of deaths.

    A batch dies if it holds a killer that is not condemned.

    Args:
        shards: The entries of each shard.
        killers: The entries that kill.
        seed: Decides which group is taken next.
    """
    waiting = {shard: list(entries) for shard, entries in shards.items()}
    known = dict.fromkeys(waiting, Suspicion())
    buried, deaths, chance = [], 0, random.Random(seed)
    while any(waiting.values()):
        group = chance.choice(
            group_shards(
                [WaitingShard(shard, len(waiting[shard]), known[shard]) for shard in waiting if waiting[shard]]
            )
        )
        taken = {shard: waiting[shard][: known[shard].batch_size] for shard in group}
        condemned = [shard for shard in group if known[shard].state is State.CONDEMNED]
        posted = [entry for shard in group if shard not in condemned for entry in taken[shard]]
        if killers & set(posted):
            known |= {shard: known[shard].start(len(taken[shard])) for shard in group}
            deaths += 1
            assert deaths < DEATHS_MAX
            continue
        buried += [taken[shard][0] for shard in condemned]
        for shard in group:
            known[shard] = known[shard].survive(len(taken[shard]))
            waiting[shard] = waiting[shard][len(taken[shard]) :]
    return buried, deaths


@given(st.integers(0, 1200), st.integers(1, 1300))
def test_only_the_killer_is_buried_and_after_few_deaths(killer, length):
    buried, deaths = drain({0: range(length)}, {killer})
    assert buried == [killer] * (killer < length)
    assert deaths <= 20


@given(st.sets(st.integers(0, 600), max_size=5))
def test_every_killer_of_a_shard_is_buried_and_no_other_entry(killers):
    assert drain({0: range(601)}, killers)[0] == sorted(killers)


@given(
    sizes=st.lists(st.integers(0, 300), min_size=2, max_size=8),
    places=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 299)), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_with_several_shards_every_killer_is_buried_and_no_other_entry(sizes, places, seed):
    shards = {shard: [(shard, place) for place in range(size)] for shard, size in enumerate(sizes)}
    killers = {entry for entries in shards.values() for entry in entries} & places
    assert sorted(drain(shards, killers, seed)[0]) == sorted(killers)


def test_seven_entries_that_share_a_batch_with_a_killer_cost_one_death_and_are_posted():
    buried, deaths = drain({shard: [shard] for shard in range(8)}, {3})
    assert buried == [3]
    assert deaths == 6  # three until the search begins, three until the entry is condemned


def test_a_shard_with_a_death_is_a_group_of_its_own_and_the_others_share_one():
    calm = [WaitingShard(shard, 1, Suspicion()) for shard in range(3)]
    assert group_shards(calm) == [[0, 1, 2]]
    assert group_shards([*calm, WaitingShard(3, 1, Suspicion(deaths=1, size=1))]) == [[3], [0, 1, 2]]


def test_in_a_backlog_each_group_has_enough_entries_for_a_batch():
    assert group_shards([WaitingShard(shard, 300, Suspicion()) for shard in range(5)]) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("suspicion", "state"),
    [
        (Suspicion(), State.CALM),
        (Suspicion(deaths=1, size=8), State.SUSPECTED),
        (Suspicion(deaths=2, size=8), State.SUSPECTED),
        (Suspicion(deaths=3, size=8), State.SEARCHING),
        (Suspicion(deaths=9, size=1, alone=2), State.SEARCHING),
        (Suspicion(deaths=10, size=1, alone=3), State.CONDEMNED),
    ],
)
def test_the_state_follows_from_the_deaths(suspicion, state):
    assert suspicion.state is state


def test_two_deaths_do_not_make_batches_smaller_and_a_batch_that_ends_clears_them():
    assert Suspicion(2, BATCH_MAX).batch_size == BATCH_MAX
    assert Suspicion(2, BATCH_MAX).survive(BATCH_MAX) == Suspicion()


@pytest.mark.parametrize("fields", [{}, None, ValueError("WRONGTYPE")])
def test_a_hash_that_cannot_be_read_means_no_suspicion(fields):
    assert read_suspicion(fields) == Suspicion()
