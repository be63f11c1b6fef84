import json
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from feeds.cursor import Cursor, Direction, Signer, read_cursor
from feeds.endpoint.page_body import PageRequest, make_etag, matches, render_body
from feeds.page import Filter, cut

SIGNER = Signer(b"s" * 32, {"ai_usage": 0, "tm_usage": 1})
EPOCH = UUID(int=1)
MEMBERS = [
    "object", "page", "limit", "total_items", "total_pages", "has_next", "has_prev", "direction", "cursor",
    "next_cursor", "prev_cursor",
]  # fmt: skip


def render(request, count):
    """Return the ordinals on the page of a feed of `count` items, and the `pages` object."""
    span = cut(request.place, count)
    items = [b"%d" % ordinal for ordinal in range(span.newest, span.below, -1)]
    body = json.loads(render_body(SIGNER, "org_a", request, count, items))
    assert body["object"] == "list"
    assert list(body["pages"]) == MEMBERS
    return body["items"], body["pages"]


def follow(cursor_text, limit):
    """Return the request for the page at a cursor."""
    feed, cursor = read_cursor(SIGNER, "org_a", cursor_text)
    return PageRequest(feed, limit, cursor=cursor)


arrivals = st.lists(st.integers(0, 9), max_size=40)


@given(start=st.integers(0, 50), limit=st.integers(1, 12), arrivals=arrivals, data=st.data())
def test_paging_next_gives_every_item_of_the_start_once_however_many_arrive(start, limit, arrivals, data):
    count, request, found = start, PageRequest(Filter(), limit), []
    for _ in range(200):
        items, pages = render(request, count)
        found += items
        if not pages["has_next"]:
            break
        count += arrivals.pop() if arrivals else 0
        request = follow(pages["next_cursor"], data.draw(st.integers(1, 12)))

    assert found == list(range(start, 0, -1))


@given(start=st.integers(1, 50), limit=st.integers(1, 12), arrivals=arrivals)
def test_paging_prev_from_past_the_end_gives_every_item_once_up_to_the_newest(start, limit, arrivals):
    count, request, found = start, PageRequest(Filter(), limit, page=1000), []
    for _ in range(600):
        items, pages = render(request, count)
        found = items + found
        if not pages["has_prev"]:
            break
        count += arrivals.pop() if arrivals else 0
        request = follow(pages["prev_cursor"], limit)

    assert found == list(range(count, 0, -1))


@given(count=st.integers(0, 50), ordinal=st.integers(0, 50), limit=st.integers(1, 12), later=st.integers(0, 30))
def test_the_cursor_of_a_page_gives_the_same_page_again(count, ordinal, limit, later):
    for request in [
        PageRequest(Filter(), limit, page=1 + ordinal),
        PageRequest(Filter(), limit, cursor=Cursor(Direction.NEXT, min(ordinal, count))),
        PageRequest(Filter(), limit, cursor=Cursor(Direction.PREV, min(ordinal, count))),
    ]:
        items, pages = render(request, count)
        again, pages_again = render(follow(pages["cursor"], limit), count + later)

        assert again == items
        assert pages_again["direction"] == pages["direction"]


@given(count=st.integers(1, 50), limit=st.integers(1, 12), ordinal=st.integers(1, 50))
def test_the_page_number_of_a_cursor_is_the_page_that_now_holds_its_first_item(count, limit, ordinal):
    for direction in Direction:
        items, pages = render(PageRequest(Filter(), limit, cursor=Cursor(direction, ordinal)), count)
        if items:
            numbered, _ = render(PageRequest(Filter(), limit, page=pages["page"]), count)
            assert items[0] in numbered


@given(count=st.integers(0, 50), limit=st.integers(1, 12), page=st.integers(1, 60))
def test_flags_and_cursors_agree_with_the_neighbours_of_the_page(count, limit, page):
    items, pages = render(PageRequest(Filter(), limit, page), count)

    assert pages["has_next"] == (bool(items) and items[-1] > 1) == (pages["next_cursor"] is not None)
    assert pages["has_prev"] == (page > 1 and count > 0) == (pages["prev_cursor"] is not None)
    assert pages["total_pages"] == -(-count // limit)
    assert (pages["page"], pages["direction"]) == (page, "next")


def test_the_prev_cursor_of_a_page_past_the_end_gives_the_oldest_items():
    items, pages = render(PageRequest(Filter(), 20, page=9), 45)

    assert items == []
    assert (pages["has_next"], pages["next_cursor"], pages["has_prev"]) == (False, None, True)
    assert render(follow(pages["prev_cursor"], 20), 45)[0] == list(range(20, 0, -1))


def test_an_empty_feed_has_no_pages_and_no_cursors_to_others():
    items, pages = render(PageRequest(Filter(), 20), 0)

    assert items == []
    assert (pages["total_items"], pages["total_pages"], pages["page"]) == (0, 0, 1)
    assert (pages["has_next"], pages["has_prev"]) == (False, False)
    assert (pages["next_cursor"], pages["prev_cursor"]) == (None, None)


def test_the_newest_page_reached_by_prev_may_be_short():
    items, pages = render(PageRequest(Filter(), 20, cursor=Cursor(Direction.PREV, 40)), 45)

    assert items == [45, 44, 43, 42, 41]
    assert (pages["direction"], pages["page"], pages["has_prev"]) == ("prev", 1, False)


def test_requests_with_different_bodies_have_different_etags():
    request = PageRequest(Filter(), 20)
    requests = [
        request,
        request._replace(page=2),
        request._replace(limit=21),
        request._replace(feed=Filter(usage_kind="ai_usage")),
        request._replace(cursor=Cursor(Direction.NEXT, 5)),
        request._replace(cursor=Cursor(Direction.PREV, 5)),
        request._replace(cursor=Cursor(Direction.PREV, 5, 7)),
    ]
    etags = {make_etag(SIGNER, "org_a", one, 45, EPOCH) for one in requests}
    etags.add(make_etag(SIGNER, "org_b", request, 45, EPOCH))
    etags.add(make_etag(SIGNER, "org_a", request, 46, EPOCH))
    etags.add(make_etag(SIGNER, "org_a", request, 45, UUID(int=2)))

    assert len(etags) == len(requests) + 3
    assert make_etag(SIGNER, "org_a", PageRequest(Filter(), 20), 45, EPOCH) in etags


def test_if_none_match_may_be_one_etag_a_list_a_weak_etag_or_a_star():
    for header in ['"a"', 'W/"a"', '"b", "a"', '"b",W/"a" , "c"', "*", " * "]:
        assert matches(header, '"a"'), header
    for header in ["a", '"b"', '"A"', '"b, *"', 'w/"a"', ","]:
        assert not matches(header, '"a"'), header
