"""What does `GET /credits/usage` answer?"""

import asyncio
import logging

from starlette.types import Scope

from feeds import counters
from feeds.cached.format import Hit, Miss, Unchanged
from feeds.endpoint.access import authenticate, has_two_hosts, join_values, read_credentials
from feeds.endpoint.answer import JSON_HEADERS, Answer, Headers, unchanged_answer
from feeds.endpoint.answer_cache import CachedAnswer, RenderedPage, read_request_key
from feeds.endpoint.errors import InvalidParameter, MethodNotAllowed, TwoHosts
from feeds.endpoint.page_body import make_etag, matches, render_body
from feeds.endpoint.query import parse_query
from feeds.endpoint.services import Services
from feeds.read_through import make_revalidation, read

log = logging.getLogger(__name__)


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
        return unchanged_answer(page.etag)
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
