import json
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from feeds.cursor import Cursor, Direction, Signer, read_cursor
from feeds.endpoint.page_body import PageRequest, make_etag, matches, render_body
from feeds.page import Filter, cut

SEAL = Signer(b"s" * 32, {"ai_usage": 0, "tm_usage": 1})
EPOCH = UUID(int=1)
MEMBERS = [
    "object", "page", "limit", "total_items", "total_pages", "has_next", "has_prev", "direction", "cursor",
    "next_cursor", "prev_cursor",
]  # fmt: skip


def show(ask, count):
    """Return the ordinals that a feed of `count` lines shows, and the pages object."""
    span = cut(ask.place, count)
    entries = [b"%d" % ordinal for ordinal in range(span.newest, span.below, -1)]
    listing = json.loads(render_body(SEAL, "org_a", ask, count, entries))
    assert listing["object"] == "list"
    assert list(listing["pages"]) == MEMBERS
    return listing["items"], listing["pages"]


def follow(text, limit):
    feed, cursor = read_cursor(SEAL, "org_a", text)
    return PageRequest(feed, limit, cursor=cursor)


arrivals = st.lists(st.integers(0, 9), max_size=40)


@given(start=st.integers(0, 50), limit=st.integers(1, 12), arrivals=arrivals, data=st.data())
def test_walking_next_shows_every_line_of_the_start_once_however_many_arrive(start, limit, arrivals, data):
    count, ask, shown = start, PageRequest(Filter(), limit), []
    for _ in range(200):
        items, pages = show(ask, count)
        shown += items
        if not pages["has_next"]:
            break
        count += arrivals.pop() if arrivals else 0
        ask = follow(pages["next_cursor"], data.draw(st.integers(1, 12)))

    assert shown == list(range(start, 0, -1))


@given(start=st.integers(1, 50), limit=st.integers(1, 12), arrivals=arrivals)
def test_walking_prev_from_past_the_end_shows_every_line_once_up_to_the_newest(start, limit, arrivals):
    count, ask, shown = start, PageRequest(Filter(), limit, page=1000), []
    for _ in range(600):
        items, pages = show(ask, count)
        shown = items + shown
        if not pages["has_prev"]:
            break
        count += arrivals.pop() if arrivals else 0
        ask = follow(pages["prev_cursor"], limit)

    assert shown == list(range(count, 0, -1))


@given(count=st.integers(0, 50), ordinal=st.integers(0, 50), limit=st.integers(1, 12), later=st.integers(0, 30))
def test_the_cursor_of_a_page_gives_that_very_page_again(count, ordinal, limit, later):
    for ask in [
        PageRequest(Filter(), limit, page=1 + ordinal),
        PageRequest(Filter(), limit, cursor=Cursor(Direction.NEXT, min(ordinal, count))),
        PageRequest(Filter(), limit, cursor=Cursor(Direction.PREV, min(ordinal, count))),
    ]:
        items, pages = show(ask, count)
        again, pages_again = show(follow(pages["cursor"], limit), count + later)

        assert again == items
        assert pages_again["direction"] == pages["direction"]


@given(count=st.integers(1, 50), limit=st.integers(1, 12), ordinal=st.integers(1, 50))
def test_the_page_of_a_cursor_is_the_number_on_which_its_first_line_now_stands(count, limit, ordinal):
    for direction in Direction:
        items, pages = show(PageRequest(Filter(), limit, cursor=Cursor(direction, ordinal)), count)
        if items:
            numbered, _ = show(PageRequest(Filter(), limit, page=pages["page"]), count)
            assert items[0] in numbered


@given(count=st.integers(0, 50), limit=st.integers(1, 12), page=st.integers(1, 60))
def test_flags_and_cursors_agree_with_what_lies_beside_the_page(count, limit, page):
    items, pages = show(PageRequest(Filter(), limit, page), count)

    assert pages["has_next"] == (bool(items) and items[-1] > 1) == (pages["next_cursor"] is not None)
    assert pages["has_prev"] == (page > 1 and count > 0) == (pages["prev_cursor"] is not None)
    assert pages["total_pages"] == -(-count // limit)
    assert (pages["page"], pages["direction"]) == (page, "next")


def test_a_page_past_the_end_leads_back_to_the_oldest_lines():
    items, pages = show(PageRequest(Filter(), 20, page=9), 45)

    assert items == []
    assert (pages["has_next"], pages["next_cursor"], pages["has_prev"]) == (False, None, True)
    assert show(follow(pages["prev_cursor"], 20), 45)[0] == list(range(20, 0, -1))


def test_an_empty_feed_has_no_pages_and_leads_nowhere():
    items, pages = show(PageRequest(Filter(), 20), 0)

    assert items == []
    assert (pages["total_items"], pages["total_pages"], pages["page"]) == (0, 0, 1)
    assert (pages["has_next"], pages["has_prev"]) == (False, False)
    assert (pages["next_cursor"], pages["prev_cursor"]) == (None, None)


def test_the_newest_page_of_a_walk_back_may_be_short():
    items, pages = show(PageRequest(Filter(), 20, cursor=Cursor(Direction.PREV, 40)), 45)

    assert items == [45, 44, 43, 42, 41]
    assert (pages["direction"], pages["page"], pages["has_prev"]) == ("prev", 1, False)


def test_an_etag_differs_for_whatever_the_body_differs_for():
    ask = PageRequest(Filter(), 20)
    asks = [
        ask,
        ask._replace(page=2),
        ask._replace(limit=21),
        ask._replace(feed=Filter(usage_kind="ai_usage")),
        ask._replace(cursor=Cursor(Direction.NEXT, 5)),
        ask._replace(cursor=Cursor(Direction.PREV, 5)),
        ask._replace(cursor=Cursor(Direction.PREV, 5, 7)),
    ]
    tags = {make_etag(SEAL, "org_a", each, 45, EPOCH) for each in asks}
    tags.add(make_etag(SEAL, "org_b", ask, 45, EPOCH))
    tags.add(make_etag(SEAL, "org_a", ask, 46, EPOCH))
    tags.add(make_etag(SEAL, "org_a", ask, 45, UUID(int=2)))

    assert len(tags) == len(asks) + 3
    assert make_etag(SEAL, "org_a", PageRequest(Filter(), 20), 45, EPOCH) in tags


def test_if_none_match_names_an_etag_alone_in_a_list_weakly_or_by_a_star():
    for header in ['"a"', 'W/"a"', '"b", "a"', '"b",W/"a" , "c"', "*", " * "]:
        assert matches(header, '"a"'), header
    for header in ["a", '"b"', '"A"', '"b, *"', 'w/"a"', ","]:
        assert not matches(header, '"a"'), header
