from hypothesis import given
from hypothesis import strategies as st

from feeds.bounded_map import BoundedMap


def test_a_full_map_evicts_the_key_that_was_stored_first():
    found = BoundedMap(2)
    for key in "abc":
        found.store(key, key.upper())

    assert list(found.items()) == [("b", "B"), ("c", "C")]


def test_to_store_a_key_again_or_to_move_it_to_the_end_counts_as_use_and_to_get_it_does_not():
    found = BoundedMap(3)
    for key in "abc":
        found.store(key, 0)
    found.store("a", 1)
    found.move_to_end("b")
    found.get("c")
    found.store("d", 0)
    assert list(found) == ["a", "b", "d"]
    found.store("e", 0)
    assert list(found) == ["b", "d", "e"]


@given(keys=st.lists(st.integers(0, 9)), size_max=st.integers(1, 5))
def test_a_map_holds_the_keys_that_were_used_last(keys, size_max):
    found = BoundedMap(size_max)
    for value, key in enumerate(keys):
        found.store(key, value)

    last_used = list(dict.fromkeys(reversed(keys)))[:size_max][::-1]
    assert list(found) == last_used
    assert all(keys[value] == key for key, value in found.items())
