from hypothesis import given
from hypothesis import strategies as st

from feeds.page import Place, count_pages, cut, page_number, place_page

counts = st.integers(0, 60)
limits = st.integers(1, 12)


@given(count=counts, limit=limits)
def test_the_numbered_pages_of_a_feed_hold_every_ordinal_once_newest_first(count, limit):
    pages = [cut(place_page(number, limit), count) for number in range(1, count_pages(count, limit) + 1)]

    ordinals = [ordinal for page in pages for ordinal in range(page.newest, page.below, -1)]
    assert ordinals == list(range(count, 0, -1))
    assert all(page.newest - page.below == limit for page in pages[:-1])


@given(count=counts, limit=limits, beyond=st.integers(1, 2**31))
def test_a_page_past_the_end_is_empty_and_below_the_oldest_movement(count, limit, beyond):
    assert cut(place_page(count_pages(count, limit) + beyond, limit), count) == (0, 0)


@given(count=counts, limit=limits, skip=st.integers(0, 80), ceiling=st.integers(0, 80), floor=st.integers(0, 80))
def test_cut_gives_the_newest_ordinals_that_skip_ceiling_and_floor_leave(count, limit, skip, ceiling, floor):
    span = cut(Place(limit, skip, ceiling, floor), count)

    left = [ordinal for ordinal in range(1, count - skip + 1) if floor < ordinal <= ceiling]
    assert list(range(span.below + 1, span.newest + 1)) == left[-limit:]
    assert 0 <= span.below <= span.newest <= count


@given(count=st.integers(1, 60), limit=limits, number=st.integers(1, 8))
def test_page_number_gives_a_numbered_page_its_own_number(count, limit, number):
    span = cut(place_page(number, limit), count)

    found = page_number(span, count, limit)
    assert found == number if span.newest else found == count_pages(count, limit) + 1
