import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.cursor import CURSOR_CHARS, BadCursor, Cursor, Direction, Signer, read_cursor, write_cursor
from feeds.movement import Kind
from feeds.page import Filter

SIGNER = Signer(b"s" * 32, {"ai_usage": 0, "tm_usage": 1})
feeds = st.builds(Filter, st.none() | st.sampled_from(Kind), st.none() | st.sampled_from(list(SIGNER.usage_numbers)))
cursors = st.builds(Cursor, st.sampled_from(Direction), st.integers(0, 2**62), st.integers(0, 2**62))


@given(feed=feeds, cursor=cursors)
def test_a_cursor_is_read_as_it_was_written(feed, cursor):
    text = write_cursor(SIGNER, "org_a", feed, cursor)

    assert read_cursor(SIGNER, "org_a", text) == (feed, cursor)
    assert len(text) == CURSOR_CHARS
    assert text.replace("-", "").replace("_", "").isalnum()


@given(feed=feeds, cursor=cursors)
def test_a_cursor_of_another_organisation_or_ledger_is_refused(feed, cursor):
    text = write_cursor(SIGNER, "org_a", feed, cursor)

    for signer, org_id in [(SIGNER, "org_b"), (SIGNER, ""), (SIGNER._replace(secret=b"t" * 32), "org_a")]:
        with pytest.raises(BadCursor):
            read_cursor(signer, org_id, text)


@given(cursor=cursors, index=st.integers(0, CURSOR_CHARS - 1), character=st.sampled_from("ABCDEFwxyz0189-_"))
def test_a_cursor_with_any_character_changed_is_refused(cursor, index, character):
    text = write_cursor(SIGNER, "org_a", Filter(), cursor)
    forged = text[:index] + character + text[index + 1 :]

    if forged != text:
        with pytest.raises(BadCursor):
            read_cursor(SIGNER, "org_a", forged)


@given(text=st.text(max_size=60) | st.text(min_size=CURSOR_CHARS, max_size=CURSOR_CHARS))
def test_any_text_that_is_not_a_cursor_is_refused(text):
    with pytest.raises(BadCursor):
        read_cursor(SIGNER, "org_a", text)


def test_a_cursor_of_a_usage_kind_that_this_process_does_not_know_is_refused():
    newer = Signer(SIGNER.secret, SIGNER.usage_numbers | {"new_usage": 2})
    text = write_cursor(newer, "org_a", Filter(usage_kind="new_usage"), Cursor(Direction.NEXT, 1))

    with pytest.raises(BadCursor):
        read_cursor(SIGNER, "org_a", text)
