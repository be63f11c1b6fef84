"""What is remembered of a question, and for how long."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from feeds.endpoint import answer_cache as repeats
from feeds.endpoint.answer_cache import Meaning, Page, Repeats, read_question
from feeds.endpoint.identity import Grant
from feeds.endpoint.listing import Ask
from feeds.page import Filter

ASK = Ask(Filter(), 20)
PAGE = Page(UUID(int=1), 1, '"e"', [], b"{}")
BEARER = {b"authorization": b"Bearer ufk_a"}


def grant(fresh_s=10.0, expires_at=None, org_id="org_a"):
    now = time.monotonic()
    return Grant(org_id, UUID(int=7), None, expires_at, now, now + fresh_s)


def question(query=b"", **headers):
    return read_question(BEARER | {name.replace("_", "-").encode(): value for name, value in headers.items()}, query)


def test_a_question_is_known_by_key_organisation_and_query():
    memory = Repeats()
    meaning = Meaning(grant(), ASK)
    memory.keep(question(b"page=1", x_org_id=b"org_a"), meaning)

    assert memory.find(question(b"page=1", x_org_id=b"org_a")) is meaning
    for other in (
        question(b"page=1"),
        question(b"page=2", x_org_id=b"org_a"),
        question(b"page=1", x_org_id=b"org_b"),
        question(b"page=1", x_org_id=b"org_a", authorization=b"Bearer ufk_b"),
    ):
        assert memory.find(other) is None


def test_nothing_of_a_key_is_kept_but_a_digest():
    assert b"ufk_a" not in repr(question()).encode()


@pytest.mark.parametrize(
    "ended", [grant(fresh_s=-0.001), grant(expires_at=datetime.now(UTC) - timedelta(milliseconds=1))]
)
def test_a_key_is_asked_about_again_as_soon_as_its_answer_is_old_or_it_has_ended(ended):
    memory = Repeats()
    memory.keep(question(), Meaning(ended, ASK))

    assert memory.find(question()) is None


def test_the_page_outlives_the_answer_of_the_key_but_not_a_change_of_what_is_asked():
    memory = Repeats()
    old = Meaning(grant(fresh_s=-1), ASK, PAGE)
    memory.keep(question(), old)
    again = Meaning(grant(), ASK)
    memory.keep(question(), again)
    assert again.page is PAGE

    elsewhere = Meaning(grant(org_id="org_b"), ASK)
    memory.keep(question(), elsewhere)
    assert elsewhere.page is None


def test_what_has_no_key_or_is_long_is_not_remembered():
    assert read_question({}, b"") is None
    assert question(b"kind=&" * 100) is None


def test_the_memory_is_bounded_and_the_eldest_goes_first(monkeypatch):
    monkeypatch.setattr(repeats, "KEPT", 2)
    memory = Repeats()
    for query in (b"1", b"2", b"3"):
        memory.keep(question(query), Meaning(grant(), ASK))

    assert [memory.find(question(query)) is None for query in (b"1", b"2", b"3")] == [True, False, False]
