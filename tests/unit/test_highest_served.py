from uuid import UUID

from feeds.cached import highest_served
from feeds.cached.highest_served import HighestServed

OLD, NEW = UUID(int=1), UUID(int=2)


def test_a_cached_count_is_older_if_a_higher_one_was_served_whatever_its_epoch():
    served = HighestServed()

    assert [served.is_older("org_a", 0, total, OLD) for total in (5, 5, 4, 6, 5)] == [False, False, True, False, True]
    assert served.is_older("org_a", 0, 5, NEW)
    assert not served.is_older("org_a", 1, 1, OLD)
    assert not served.is_older("org_b", 0, 1, OLD)


def test_a_count_of_postgres_may_be_served_unless_it_is_lower_than_one_of_its_epoch():
    served = HighestServed()

    assert [served.note_read("org_a", 0, total, OLD) for total in (5, 4, 5, 6)] == [True, False, True, True]
    assert served.is_older("org_a", 0, 5, OLD)


def test_in_a_new_epoch_a_lower_count_of_postgres_replaces_the_highest_one():
    served = HighestServed()
    served.note_read("org_a", 0, 9, OLD)

    assert served.note_read("org_a", 0, 5, NEW)
    assert not served.is_older("org_a", 0, 5, NEW)
    assert not served.note_read("org_a", 0, 4, NEW)


def test_the_feed_that_was_not_used_for_the_longest_time_is_forgotten(monkeypatch):
    monkeypatch.setattr(highest_served, "FEEDS_MAX", 2)
    served = HighestServed()
    served.is_older("org_a", 0, 9, OLD)
    served.is_older("org_b", 0, 9, OLD)
    served.is_older("org_a", 0, 9, OLD)
    served.is_older("org_c", 0, 9, OLD)

    assert served.is_older("org_a", 0, 8, OLD)
    assert not served.is_older("org_b", 0, 8, OLD)
