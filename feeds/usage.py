"""What does `GET /credits/usage` answer?"""

import asyncio
import logging
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from feeds import tally
from feeds.cursor import Seal
from feeds.errors import Failed, IdentityMissing, InvalidParameter, MethodNotAllowed, Problem
from feeds.feed import Feeds, Known, read
from feeds.identity import Grant, Identities
from feeds.limit import Limits
from feeds.listing import Ask, matches, show_listing, tag_listing
from feeds.postgres import PostgresAway
from feeds.query import read_ask
from feeds.rendered import Page, Rendered

log = logging.getLogger(__name__)

GUARDS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""What keeps a browser from taking an answer for a page of ours."""
SHARED_HEADERS = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Authorization, X-Org-ID"),
    *GUARDS,
)


class Serving(NamedTuple):
    """What answers are made from, for as long as the app lives."""

    seal: Seal
    feeds: Feeds
    identities: Identities
    rendered: Rendered
    limits: Limits


class Answer(NamedTuple):
    """What is sent. `code` is an error's, else `page` or `unchanged`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    code: str


class Question(NamedTuple):
    """The headers that we read. `org_ids` holds every `X-Org-ID` that says something."""

    authorizations: list[str]
    org_ids: list[str]
    if_none_match: str


async def usage(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 -- ASGI's own signature
    """Answer one request for a page, whatever is asked: never with a traceback."""
    try:
        answer = await answer_usage(scope)
    except Problem as problem:
        answer = show_problem(problem)
    except PostgresAway as away:
        log.warning("no page: %s", away)
        answer = show_problem(Failed())
    except Exception:  # the edge: a reader gets the envelope, the operator the traceback
        log.exception("no page")
        answer = show_problem(Failed())
    tally.answers[answer.code] += 1
    body = b"" if scope["method"] == "HEAD" else answer.body
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": body})


async def answer_usage(scope: Scope) -> Answer:
    """Return the page that is asked for. Raises `Problem`, in the contract's order, or `PostgresAway`."""
    if scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed
    serving: Serving = scope["state"]["serving"]
    question = read_headers(scope["headers"])
    grant = await identify(serving.identities, question)
    org_id = grant.org_id or ""
    ask = read_ask(scope["query_string"], serving.seal, org_id)
    if len(question.org_ids) > 1:
        raise InvalidParameter(fields={"X-Org-ID": "given more than once"})
    if grant.rate is None:
        page = await find_page(serving, org_id, ask)
    else:  # side by side, and so in one round trip
        _, page = await asyncio.gather(serving.limits.take(grant.key_id, grant.rate), find_page(serving, org_id, ask))
    headers = [*SHARED_HEADERS, (b"etag", page.etag.encode())]
    if question.if_none_match and matches(question.if_none_match, page.etag):
        return Answer(304, headers[1:], b"", "unchanged")
    return Answer(200, [*headers, (b"content-length", b"%d" % len(page.body))], page.body, "page")


async def find_page(serving: Serving, org_id: str, ask: Ask) -> Page:
    """Return the page as it is sent: the one sent before, where the feed's count says that it is still true."""
    kept = serving.rendered.find(org_id, ask)
    found = await read(serving.feeds, org_id, ask.feed, ask.place, kept and kept.known)
    if found is None:
        assert kept is not None, "only what is known can be unchanged"
        return kept
    etag = tag_listing(serving.seal, org_id, ask, found.total, found.epoch)
    body = show_listing(serving.seal, org_id, ask, found.total, found.entries)
    page = Page(Known(found.epoch, found.total), etag, body)
    serving.rendered.keep(org_id, ask, page)
    return page


async def identify(identities: Identities, question: Question) -> Grant:
    """Return what the key grants, and for which organisation. Raises `IdentityMissing` or `Forbidden`.

    None is named for a personal key with several `X-Org-ID`, which is refused once the parameters are read.
    """
    if len(question.authorizations) != 1:
        raise IdentityMissing
    scheme, _, secret = question.authorizations[0].partition(" ")
    if scheme.lower() != "bearer":
        raise IdentityMissing
    named_org_id = question.org_ids[0] if len(question.org_ids) == 1 else None
    grant = await identities.identify(secret.strip(" "), named_org_id)
    if grant.org_id is None and not question.org_ids:
        raise IdentityMissing
    return grant


def read_headers(headers: list[tuple[bytes, bytes]]) -> Question:
    """Return the headers that we read. An empty one is an absent one."""
    given: dict[bytes, list[str]] = {b"authorization": [], b"x-org-id": [], b"if-none-match": []}
    for name, value in headers:
        if name in given and value:
            given[name].append(value.decode("latin-1"))
    authorizations, org_ids, if_none_match = given.values()
    return Question(authorizations, org_ids, ",".join(if_none_match))


def show_problem(problem: Problem) -> Answer:
    """Return an error's answer."""
    body = problem.body()
    length = (b"content-length", b"%d" % len(body))
    return Answer(problem.status, [*SHARED_HEADERS, *problem.headers, length], body, problem.code)
