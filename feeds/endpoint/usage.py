"""What does `GET /credits/usage` answer?"""

import asyncio
import logging
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from feeds import counters
from feeds.cached.format import Hit, Miss, Unchanged
from feeds.cursor import Signer
from feeds.endpoint.answer_cache import AnswerCache, CachedAnswer, Headers, RenderedPage, read_request_key
from feeds.endpoint.errors import (
    IdentityMissing,
    InternalError,
    InvalidParameter,
    MethodNotAllowed,
    Problem,
    TwoHosts,
)
from feeds.endpoint.identity import Access, Identities
from feeds.endpoint.page_body import make_etag, matches, render_body
from feeds.endpoint.query import parse_query
from feeds.endpoint.rate_limit import RateLimiter
from feeds.postgres import PostgresAway
from feeds.read_through import Feeds, make_revalidation, read

log = logging.getLogger(__name__)

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


class Services(NamedTuple):
    """What answers are made from, for the lifetime of the app."""

    signer: Signer
    feeds: Feeds
    identities: Identities
    answers: AnswerCache
    rate_limiter: RateLimiter


class Answer(NamedTuple):
    """What is sent. `outcome` is an error's code, else `page` or `unchanged`."""

    status: int
    headers: Headers
    body: bytes
    outcome: str


class Credentials(NamedTuple):
    """The headers that identify the caller: every `Authorization` and every `X-Org-ID` that is not empty."""

    authorizations: list[str]
    org_ids: list[str]


async def usage(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 -- ASGI's own signature
    """Answer one request for a page. An unexpected error is logged and answered with the envelope."""
    try:
        answer = await answer_usage(scope)
    except Problem as problem:
        answer = problem_answer(problem)
    except PostgresAway as away:
        log.warning("GET /credits/usage failed: Postgres: %s", away)
        answer = problem_answer(InternalError())
    except Exception:  # the edge: the caller gets the envelope, the operator the traceback
        log.exception("GET /credits/usage failed")
        answer = problem_answer(InternalError())
    counters.answers[answer.outcome] += 1
    await send_answer(scope, send, answer)


async def send_answer(scope: Scope, send: Send, answer: Answer) -> None:
    """Send an answer; without its body if the request is HEAD."""
    body = b"" if scope["method"] == "HEAD" else answer.body
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": body})


async def answer_usage(scope: Scope) -> Answer:
    """Return the page that is requested. Raises `Problem` or `PostgresAway`."""
    if scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed
    services: Services = scope["state"]["services"]
    headers = scope["headers"]
    by_name = dict(headers)
    # A request with a repeated header is never answered from the answer cache.
    is_repeated = len(by_name) != len(headers)
    if is_repeated and has_two_hosts(headers):
        raise TwoHosts
    key = None if is_repeated else read_request_key(by_name, scope["query_string"])
    answer = services.answers.find(key)
    if answer is None:
        answer = await authenticate_and_parse(services, headers, scope["query_string"])
        services.answers.store(key, answer)
    access = answer.access
    if access.rate is None:
        page = await find_page(services, answer)
    else:  # concurrently, so both share one round trip
        services.rate_limiter.raise_if_refused(access.key_id)
        take = services.rate_limiter.take(access.key_id, access.rate)
        _, page = await asyncio.gather(take, find_page(services, answer))
    if b"if-none-match" in by_name and matches(join_values(headers, b"if-none-match"), page.etag):
        return Answer(304, [*COMMON_HEADERS, (b"etag", page.etag.encode())], b"", "unchanged")
    return Answer(200, [*page.headers], page.body, "page")


async def authenticate_and_parse(services: Services, headers: Headers, query_string: bytes) -> CachedAnswer:
    """Return who the caller is and what it requests, without a page yet.

    Raises `PostgresAway`, or the first `Problem` in this order: authentication, filters, paging, other parameters.
    """
    credentials = read_credentials(headers)
    access = await authenticate(services.identities, credentials)
    request = parse_query(query_string, services.signer, access.org_id or "")
    if len(credentials.org_ids) > 1:
        raise InvalidParameter(fields={"X-Org-ID": "given more than once"})
    return CachedAnswer(access, request)


async def find_page(services: Services, answer: CachedAnswer) -> RenderedPage:
    """Return the page as it is sent: the one that was sent last if the feed's count is unchanged.

    Movements are only ever added, so an equal count means an equal page.
    """
    feeds, org_id, request, last_page = services.feeds, answer.org_id, answer.request, answer.page
    found: Hit | Miss | None = None
    if last_page is not None:
        if answer.revalidation is None or not feeds.cache.has_current_stamp(answer.revalidation):
            answer.revalidation = make_revalidation(
                feeds, org_id, request.feed, request.place, last_page.epoch, last_page.total
            )
        if answer.revalidation is not None:
            reply = await feeds.cache.revalidate(org_id, answer.revalidation)
            if isinstance(reply, Unchanged):
                counters.hits["process"] += 1
                return last_page
            found = reply
    part = await read(feeds, org_id, request.feed, request.place, found)
    etag = make_etag(services.signer, org_id, request, part.total, part.epoch)
    body = render_body(services.signer, org_id, request, part.total, part.items)
    headers = [*JSON_HEADERS, (b"etag", etag.encode()), (b"content-length", b"%d" % len(body))]
    answer.page, answer.revalidation = RenderedPage(part.epoch, part.total, etag, headers, body), None
    return answer.page


async def authenticate(identities: Identities, credentials: Credentials) -> Access:
    """Return what the key may read, and of which organisation. Raises `IdentityMissing` or `Forbidden`.

    A request with several `X-Org-ID` is refused after its parameters were read; until then they count as none.
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


def has_two_hosts(headers: Headers) -> bool:
    """Tell whether the header `Host` is given more than once."""
    return [name for name, _ in headers].count(b"host") > 1


def read_credentials(headers: Headers) -> Credentials:
    """Return the headers that identify the caller. An empty value means that the header is absent."""

    def values_of(wanted: bytes) -> list[str]:
        return [value.decode("latin-1") for name, value in headers if name == wanted and value]

    return Credentials(values_of(b"authorization"), values_of(b"x-org-id"))


def problem_answer(problem: Problem) -> Answer:
    """Return an error's answer."""
    body = problem.body()
    length = (b"content-length", b"%d" % len(body))
    return Answer(problem.status, [*JSON_HEADERS, *problem.headers, length], body, problem.code)
