"""What does `GET /credits/usage` answer?"""

import asyncio
import logging
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from feeds import counters as tally
from feeds.cached.format import Hit, Miss, Unchanged
from feeds.cursor import Signer
from feeds.endpoint.answer_cache import AnswerCache, CachedAnswer, Headers, Page, read_request_key
from feeds.endpoint.errors import IdentityMissing, InternalError, InvalidParameter, MethodNotAllowed, Problem
from feeds.endpoint.identity import Access, Identities
from feeds.endpoint.page_body import make_etag, matches, render_body
from feeds.endpoint.query import parse_query
from feeds.endpoint.rate_limit import RateLimiter
from feeds.postgres import PostgresAway
from feeds.read_through import Feeds, check_page, read

log = logging.getLogger(__name__)

GUARDS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""What keeps a browser from taking an answer for a page of ours."""
COMMON_HEADERS = (
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Authorization, X-Org-ID"),
    *GUARDS,
)
SHARED_HEADERS = ((b"content-type", b"application/json"), *COMMON_HEADERS)


class Services(NamedTuple):
    """What answers are made from, for as long as the app lives."""

    seal: Signer
    feeds: Feeds
    identities: Identities
    repeats: AnswerCache
    limits: RateLimiter


class Answer(NamedTuple):
    """What is sent. `code` is an error's, else `page` or `unchanged`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    code: str


class Credentials(NamedTuple):
    """The headers that say who asks. `org_ids` holds every `X-Org-ID` that says something."""

    authorizations: list[str]
    org_ids: list[str]


async def usage(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 -- ASGI's own signature
    """Answer one request for a page, whatever is asked: never with a traceback."""
    try:
        answer = await answer_usage(scope)
    except Problem as problem:
        answer = problem_answer(problem)
    except PostgresAway as away:
        log.warning("no page: %s", away)
        answer = problem_answer(InternalError())
    except Exception:  # the edge: a reader gets the envelope, the operator the traceback
        log.exception("no page")
        answer = problem_answer(InternalError())
    tally.answers[answer.code] += 1
    body = b"" if scope["method"] == "HEAD" else answer.body
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": body})


async def answer_usage(scope: Scope) -> Answer:
    """Return the page that is asked for. Raises `Problem`, in the contract's order, or `PostgresAway`."""
    if scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed
    serving: Services = scope["state"]["serving"]
    headers = scope["headers"]
    given = dict(headers)
    # A header that comes twice is looked at closely, each time.
    question = read_request_key(given, scope["query_string"]) if len(given) == len(headers) else None
    meaning = serving.repeats.find(question)
    if meaning is None:
        meaning = await authenticate_and_parse(serving, headers, scope["query_string"])
        serving.repeats.keep(question, meaning)
    access = meaning.access
    if access.rate is None:
        page = await find_page(serving, meaning)
    else:  # side by side, and so in one round trip
        serving.limits.require_turn(access.key_id)
        _, page = await asyncio.gather(serving.limits.take(access.key_id, access.rate), find_page(serving, meaning))
    if b"if-none-match" in given and matches(join_values(headers, b"if-none-match"), page.etag):
        return Answer(304, [*COMMON_HEADERS, (b"etag", page.etag.encode())], b"", "unchanged")
    return Answer(200, [*page.headers], page.body, "page")


async def authenticate_and_parse(serving: Services, headers: Headers, query_string: bytes) -> CachedAnswer:
    """Return who asks, and what for. Raises `Problem`, in the contract's order, or `PostgresAway`."""
    credentials = read_credentials(headers)
    access = await identify(serving.identities, credentials)
    ask = parse_query(query_string, serving.seal, access.org_id or "")
    if len(credentials.org_ids) > 1:
        raise InvalidParameter(fields={"X-Org-ID": "given more than once"})
    return CachedAnswer(access, ask)


async def find_page(serving: Services, meaning: CachedAnswer) -> Page:
    """Return the page as it is sent: the one sent before, where the feed's count says that it is still true."""
    feeds, org_id, ask, kept = serving.feeds, meaning.org_id, meaning.ask, meaning.page
    answer: Hit | Miss | None = None
    if kept is not None:
        if meaning.check is None or not feeds.cache.is_current(meaning.check):
            meaning.check = check_page(feeds, org_id, ask.feed, ask.place, kept.epoch, kept.total)
        if meaning.check is not None:
            said = await feeds.cache.revalidate(org_id, meaning.check)
            if isinstance(said, Unchanged):
                tally.hits["process"] += 1
                return kept
            answer = said
    found = await read(feeds, org_id, ask.feed, ask.place, answer)
    etag = make_etag(serving.seal, org_id, ask, found.total, found.epoch)
    body = render_body(serving.seal, org_id, ask, found.total, found.entries)
    headers = [*SHARED_HEADERS, (b"etag", etag.encode()), (b"content-length", b"%d" % len(body))]
    meaning.page, meaning.check = Page(found.epoch, found.total, etag, headers, body), None
    return meaning.page


async def identify(identities: Identities, credentials: Credentials) -> Access:
    """Return what the key grants, and for which organisation. Raises `IdentityMissing` or `Forbidden`.

    None is named for a personal key with several `X-Org-ID`, which is refused once the parameters are read.
    """
    if len(credentials.authorizations) != 1:
        raise IdentityMissing
    scheme, _, secret = credentials.authorizations[0].partition(" ")
    if scheme.lower() != "bearer":
        raise IdentityMissing
    named_org_id = credentials.org_ids[0] if len(credentials.org_ids) == 1 else None
    access = await identities.identify(secret.strip(" "), named_org_id)
    if access.org_id is None and not credentials.org_ids:
        raise IdentityMissing
    return access


def join_values(headers: Headers, name: bytes) -> str:
    """Return all values of a header as one."""
    return ",".join(value.decode("latin-1") for given, value in headers if given == name)


def read_credentials(headers: Headers) -> Credentials:
    """Return the headers that say who asks. An empty one is an absent one."""
    given: dict[bytes, list[str]] = {b"authorization": [], b"x-org-id": []}
    for name, value in headers:
        if name in given and value:
            given[name].append(value.decode("latin-1"))
    return Credentials(*given.values())


def problem_answer(problem: Problem) -> Answer:
    """Return an error's answer."""
    body = problem.body()
    length = (b"content-length", b"%d" % len(body))
    return Answer(problem.status, [*SHARED_HEADERS, *problem.headers, length], body, problem.code)
