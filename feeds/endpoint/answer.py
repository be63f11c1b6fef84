"""What is an answer, and how is one sent?"""

import logging
from collections.abc import Awaitable
from typing import NamedTuple

from starlette.types import Scope, Send

from feeds import counters
from feeds.endpoint.errors import FAILED, InternalError, Problem
from feeds.postgres import PostgresAway

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

BROWSER_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""They keep browsers from rendering an answer as a web page."""
COMMON_HEADERS = (
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Authorization, X-Org-ID"),
    *BROWSER_HEADERS,
)
JSON_HEADERS = ((b"content-type", b"application/json"), *COMMON_HEADERS)


class Answer(NamedTuple):
    """What is sent. `outcome` is an error's code, else `page` or `unchanged`."""

    status: int
    headers: Headers
    body: bytes
    outcome: str


async def respond(scope: Scope, send: Send, noun: str, answering: Awaitable[Answer]) -> None:
    """Send what a path answers, given its noun. An unexpected error is logged and answered with the envelope."""
    try:
        answer = await answering
    except Problem as problem:
        answer = problem_answer(problem, noun)
    except PostgresAway as away:
        log.warning("failed to %s: Postgres: %s", FAILED[noun], away)
        answer = problem_answer(InternalError(), noun)
    except Exception:  # the edge: the caller gets the envelope, the operator the traceback
        log.exception("failed to %s", FAILED[noun])
        answer = problem_answer(InternalError(), noun)
    counters.answers[answer.outcome] += 1
    await send_answer(scope, send, answer)


async def send_answer(scope: Scope, send: Send, answer: Answer) -> None:
    """Send an answer; without its body if the request is HEAD."""
    body = b"" if scope["method"] == "HEAD" else answer.body
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": body})


def page_answer(etag: str, body: bytes) -> Answer:
    """Return an answer of JSON with its ETag."""
    headers = [*JSON_HEADERS, (b"etag", etag.encode()), (b"content-length", b"%d" % len(body))]
    return Answer(200, headers, body, "page")


def unchanged_answer(etag: str) -> Answer:
    """Return the answer to a caller that has the body already."""
    return Answer(304, [*COMMON_HEADERS, (b"etag", etag.encode())], b"", "unchanged")


def problem_answer(problem: Problem, noun: str = "usage") -> Answer:
    """Return an error's answer, as the path of this noun gives it."""
    body = problem.body(noun)
    length = (b"content-length", b"%d" % len(body))
    return Answer(problem.status, [*JSON_HEADERS, *problem.headers, length], body, problem.code_of(noun))
