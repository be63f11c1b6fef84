"""Beat's ticks come by the monotonic clock."""

import pickle
from datetime import UTC, datetime, timedelta

import pytest

from worker.broker import schedule
from worker.broker.schedule import Steady


@pytest.fixture
def clock(monkeypatch):
    """Give a clock in place of the monotonic one: a list that holds its time."""
    now = [100.0]
    monkeypatch.setattr(schedule, "monotonic", lambda: now[0])
    return now


def test_a_tick_is_due_every_second_even_if_the_wall_clock_is_an_hour_back(clock):
    steady = Steady(1.0)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    due = []
    for _ in range(12):
        due.append(steady.is_due(in_an_hour).is_due)
        clock[0] += 0.25
    assert due == [True, False, False, False] * 3


def test_after_a_pause_there_is_one_tick_and_not_one_for_each_second(clock):
    steady = Steady(1.0)
    steady.is_due(None)
    clock[0] += 3600
    assert [steady.is_due(None).is_due for _ in range(3)] == [True, False, False]


def test_a_stored_schedule_is_the_same_interval():
    stored = pickle.loads(pickle.dumps(Steady(1.0)))
    assert stored == Steady(1.0)
    assert stored.is_due(None).is_due
