import pytest

from feeds.cursor import Cursor, Direction, Signer, write_cursor
from feeds.endpoint.errors import InvalidFilter, InvalidPage, InvalidParameter
from feeds.endpoint.page_body import PageRequest
from feeds.endpoint.query import parse_query
from feeds.movement import Kind
from feeds.page import Filter

SIGNER = Signer(b"s" * 32, {"ai_usage": 0, "tm_usage": 1})
FEED = Filter(Kind.CONSUME, "tm_usage")
CURSOR = write_cursor(SIGNER, "org_a", FEED, Cursor(Direction.NEXT, 5))
CURSOR_OF_ORG_B = write_cursor(SIGNER, "org_b", FEED, Cursor(Direction.NEXT, 5))
FORGED_CURSOR = CURSOR[:-1] + ("A" if CURSOR[-1] != "A" else "B")


def read(query):
    return parse_query(query.encode("latin-1"), SIGNER, "org_a")


@pytest.mark.parametrize(
    "query", ["", "page=1", "limit=20", "page=&limit=&kind=&usage_kind=&cursor=", "page", "page=&page=1", "&&"]
)
def test_an_absent_or_empty_parameter_has_its_default(query):
    assert read(query) == PageRequest(Filter(), 20, 1, None)


def test_filters_and_paging_are_read():
    assert read("kind=overflow&usage_kind=ai_usage&page=2147483647&limit=100") == PageRequest(
        Filter(Kind.OVERFLOW, "ai_usage"), 100, 2147483647
    )
    assert read("kind=%63onsume") == PageRequest(Filter(Kind.CONSUME), 20)


@pytest.mark.parametrize(
    "query",
    [
        "kind=Consume", "kind=consume%20", "kind=consume&kind=consume", "kind=settle", "kind=%00", "kind=%FF",
        "usage_kind=ai", "usage_kind=ai_usage&usage_kind=tm_usage", "usage_kind=%27%20OR%201=1--",
        "usage_kind=ai_usage%00", "kind=%zz", "kind=consume;usage_kind=ai_usage", "kind=\xff",
    ],
)  # fmt: skip
def test_a_filter_that_is_unknown_or_repeated_is_refused(query):
    with pytest.raises(InvalidFilter):
        read(query)


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-1",
        "+1",
        "1.0",
        "01",
        " 1",
        "1 ",
        "1e1",
        "%C2%B2",
        "%D9%A1",
        "1_0",
        "0x1",
        "abc",
        "%00",
        "null",
        "99999999999999999999",
    ],
)
@pytest.mark.parametrize("name", ["page", "limit"])
def test_an_integer_that_is_not_plain_digits_in_range_is_refused(name, value):
    with pytest.raises(InvalidPage):
        read(f"{name}={value}")


@pytest.mark.parametrize(
    "query",
    [
        "page=2147483648", "limit=101", "page=1&page=1", "limit=5&limit=5", "cursor=x", f"cursor={CURSOR_OF_ORG_B}",
        f"cursor={FORGED_CURSOR}", f"cursor={CURSOR}&cursor={CURSOR}", f"cursor={CURSOR}&page=1", f"cursor={CURSOR}&limit=0",
        f"cursor={CURSOR}&kind=allot", f"cursor={CURSOR}&usage_kind=ai_usage", f"cursor={CURSOR}%00", "cursor=%F0%9F%98%80",
    ],
)  # fmt: skip
def test_paging_that_is_unusable_or_repeated_is_refused(query):
    with pytest.raises(InvalidPage):
        read(query)


@pytest.mark.parametrize("filters", ["", "&kind=consume", "&usage_kind=tm_usage", "&kind=consume&usage_kind=tm_usage"])
def test_a_cursor_keeps_its_feed_whether_filters_are_repeated_or_left_out(filters):
    assert read(f"cursor={CURSOR}&limit=7&page={filters}") == PageRequest(FEED, 7, cursor=Cursor(Direction.NEXT, 5))


@pytest.mark.parametrize("query", ["foo=1", "foo", "page=1&Limit=5", "%FF=1", "pa%00ge=1", "org_id=org_b"])
def test_an_unknown_parameter_is_refused(query):
    with pytest.raises(InvalidParameter):
        read(query)


def test_filters_are_checked_before_paging_and_paging_before_the_rest():
    with pytest.raises(InvalidFilter):
        read("foo=1&page=0&kind=x")
    with pytest.raises(InvalidPage):
        read("foo=1&page=0")
    with pytest.raises(InvalidPage):
        read(f"foo=1&cursor={CURSOR_OF_ORG_B}")
