"""What is remembered of a request, and for how long."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from feeds.endpoint import answer_cache
from feeds.endpoint.answer_cache import AnswerCache, CachedAnswer, RenderedPage, read_request_key
from feeds.endpoint.identity import Access
from feeds.endpoint.page_body import PageRequest
from feeds.page import Filter

FIRST_PAGE = PageRequest(Filter(), 20)
PAGE = RenderedPage(UUID(int=1), 1, '"e"', [], b"{}")
BEARER = {b"authorization": b"Bearer ufk_a"}


def access(fresh_s=10.0, expires_at=None, org_id="org_a"):
    now = time.monotonic()
    return Access(org_id, UUID(int=7), None, expires_at, now, now + fresh_s)


def request_key(query=b"", **headers):
    return read_request_key(BEARER | {name.replace("_", "-").encode(): value for name, value in headers.items()}, query)


def test_an_answer_is_found_only_for_the_same_key_organisation_and_query():
    answers = AnswerCache()
    answer = CachedAnswer(access(), FIRST_PAGE)
    answers.store(request_key(b"page=1", x_org_id=b"org_a"), answer)

    assert answers.find(request_key(b"page=1", x_org_id=b"org_a")) is answer
    for other in (
        request_key(b"page=1"),
        request_key(b"page=2", x_org_id=b"org_a"),
        request_key(b"page=1", x_org_id=b"org_b"),
        request_key(b"page=1", x_org_id=b"org_a", authorization=b"Bearer ufk_b"),
    ):
        assert answers.find(other) is None


def test_only_a_digest_of_the_key_is_stored():
    assert b"ufk_a" not in repr(request_key()).encode()


@pytest.mark.parametrize(
    "ended", [access(fresh_s=-0.001), access(expires_at=datetime.now(UTC) - timedelta(milliseconds=1))]
)
def test_an_answer_is_not_found_once_its_access_is_not_fresh_or_the_key_has_expired(ended):
    answers = AnswerCache()
    answers.store(request_key(), CachedAnswer(ended, FIRST_PAGE))

    assert answers.find(request_key()) is None


def test_the_last_page_is_carried_over_to_a_new_access_but_not_to_another_organisation():
    answers = AnswerCache()
    answers.store(request_key(), CachedAnswer(access(fresh_s=-1), FIRST_PAGE, PAGE))
    again = CachedAnswer(access(), FIRST_PAGE)
    answers.store(request_key(), again)
    assert again.page is PAGE

    other = CachedAnswer(access(org_id="org_b"), FIRST_PAGE)
    answers.store(request_key(), other)
    assert other.page is None


def test_a_request_without_a_key_or_with_a_long_query_is_not_remembered():
    assert read_request_key({}, b"") is None
    assert request_key(b"kind=&" * 100) is None


def test_a_full_cache_evicts_the_answer_that_was_stored_first(monkeypatch):
    monkeypatch.setattr(answer_cache, "ANSWERS_MAX", 2)
    answers = AnswerCache()
    for query in (b"1", b"2", b"3"):
        answers.store(request_key(query), CachedAnswer(access(), FIRST_PAGE))

    assert [answers.find(request_key(query)) is None for query in (b"1", b"2", b"3")] == [True, False, False]
