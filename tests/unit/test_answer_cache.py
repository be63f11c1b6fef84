"""What is remembered of a question, and for how long."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from feeds.endpoint import answer_cache as repeats
from feeds.endpoint.answer_cache import AnswerCache, CachedAnswer, Page, read_request_key
from feeds.endpoint.identity import Access
from feeds.endpoint.page_body import PageRequest
from feeds.page import Filter

ASK = PageRequest(Filter(), 20)
PAGE = Page(UUID(int=1), 1, '"e"', [], b"{}")
BEARER = {b"authorization": b"Bearer ufk_a"}


def access(fresh_s=10.0, expires_at=None, org_id="org_a"):
    now = time.monotonic()
    return Access(org_id, UUID(int=7), None, expires_at, now, now + fresh_s)


def question(query=b"", **headers):
    return read_request_key(BEARER | {name.replace("_", "-").encode(): value for name, value in headers.items()}, query)


def test_a_question_is_known_by_key_organisation_and_query():
    memory = AnswerCache()
    meaning = CachedAnswer(access(), ASK)
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
    "ended", [access(fresh_s=-0.001), access(expires_at=datetime.now(UTC) - timedelta(milliseconds=1))]
)
def test_a_key_is_asked_about_again_as_soon_as_its_answer_is_old_or_it_has_ended(ended):
    memory = AnswerCache()
    memory.keep(question(), CachedAnswer(ended, ASK))

    assert memory.find(question()) is None


def test_the_page_outlives_the_answer_of_the_key_but_not_a_change_of_what_is_asked():
    memory = AnswerCache()
    old = CachedAnswer(access(fresh_s=-1), ASK, PAGE)
    memory.keep(question(), old)
    again = CachedAnswer(access(), ASK)
    memory.keep(question(), again)
    assert again.page is PAGE

    elsewhere = CachedAnswer(access(org_id="org_b"), ASK)
    memory.keep(question(), elsewhere)
    assert elsewhere.page is None


def test_what_has_no_key_or_is_long_is_not_remembered():
    assert read_request_key({}, b"") is None
    assert question(b"kind=&" * 100) is None


def test_the_memory_is_bounded_and_the_eldest_goes_first(monkeypatch):
    monkeypatch.setattr(repeats, "KEPT", 2)
    memory = AnswerCache()
    for query in (b"1", b"2", b"3"):
        memory.keep(question(query), CachedAnswer(access(), ASK))

    assert [memory.find(question(query)) is None for query in (b"1", b"2", b"3")] == [True, False, False]
