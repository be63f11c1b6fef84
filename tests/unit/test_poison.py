"""The search for an entry that kills its process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.intake.poison import BATCH, Suspicion, read_suspicion


def run(killers, length):
    """Post `length` entries of which some kill; return which were buried, and how many died on the way."""
    waiting, buried, known, deaths = list(range(length)), [], Suspicion(), 0
    while waiting:
        if known.guilty:
            buried.append(waiting.pop(0))
            known = Suspicion()
            continue
        taken = waiting[: known.batch]
        begun = Suspicion(known.deaths + 1, len(taken), known.alone + 1 if len(taken) == 1 and known.deaths >= 3 else 0)
        if killers & set(taken):
            known, deaths = begun, deaths + 1
            assert deaths < 1000
        else:
            known, waiting = known.survive(len(taken)), waiting[len(taken) :]
    return buried, deaths


@given(st.integers(0, 1200), st.integers(1, 1300))
def test_one_killer_is_buried_alone_after_few_deaths(killer, length):
    buried, deaths = run({killer}, length)
    assert buried == [killer] * (killer < length)
    assert deaths <= 20


@given(st.sets(st.integers(0, 600), max_size=5))
def test_every_killer_is_buried_and_nobody_else(killers):
    assert run(killers, 601)[0] == sorted(killers)


def test_two_deaths_change_nothing():
    assert Suspicion(2, BATCH).batch == BATCH
    assert Suspicion(2, BATCH).survive(BATCH) == Suspicion()


@pytest.mark.parametrize("fields", [{}, None, ValueError("WRONGTYPE")])
def test_what_redis_cannot_say_suspects_nobody(fields):
    assert read_suspicion(fields) == Suspicion()
