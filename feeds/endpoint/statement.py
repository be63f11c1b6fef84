"""What do the paths beside `/credits/usage` answer? They share everything but what they read.

Callers repeat the same requests. So a process remembers, for each request, who the caller is, what it requests and the
last answer. Each request reads the body again.
"""

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.types import Scope

from feeds.cursor import Signer
from feeds.endpoint.access import authenticate, has_two_hosts, join_values, read_credentials
from feeds.endpoint.answer import Answer, Headers, page_answer, unchanged_answer
from feeds.endpoint.answer_cache import CachedBody, read_request_key
from feeds.endpoint.errors import InvalidParameter, MethodNotAllowed, TwoHosts
from feeds.endpoint.page_body import matches
from feeds.endpoint.query import Values, read_values, require_known
from feeds.endpoint.services import Services


class Statement(NamedTuple):
    """A path below `/credits`: its noun, the names of its parameters, and what it answers.

    `read` gets the services, the organisation that the caller may read, and the values of each parameter, without empty
    ones. It returns the function that reads the body: everything that is wrong with the request is found before that.
    """

    noun: str
    parameters: tuple[str, ...]
    read: Callable[[Services, str, Values], Callable[[], Awaitable[bytes]]]


async def answer_statement(statement: Statement, scope: Scope) -> Answer:
    """Return the answer. Raises `PostgresAway`, or the first `Problem` in the order of `GET /credits/usage`."""
    if scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed
    services: Services = scope["state"]["services"]
    headers = scope["headers"]
    by_name = dict(headers)
    is_repeated = len(by_name) != len(headers)  # a header
    if is_repeated and has_two_hosts(headers):
        raise TwoHosts
    key = None if is_repeated else read_request_key(by_name, scope["query_string"])
    known = None if key is None else services.bodies.get((statement.noun, key))
    if known is None or not known.access.is_fresh():
        known = await authenticate_and_read(statement, services, headers, scope["query_string"])
        if key is not None:
            services.bodies.store((statement.noun, key), known)
    access = known.access
    if access.rate is None:
        body = await known.read_body()
    else:  # concurrently, so both share one round trip
        services.rate_limiter.raise_if_refused(access.key_id)
        _, body = await asyncio.gather(services.rate_limiter.take(access.key_id, access.rate), known.read_body())
    if known.answer is None or body is not known.body:
        known.body, known.etag = body, make_body_etag(services.signer, access.org_id or "", body)
        known.answer = page_answer(known.etag, body)
    if b"if-none-match" in by_name and matches(join_values(headers, b"if-none-match"), known.etag):
        return unchanged_answer(known.etag)
    return known.answer


async def authenticate_and_read(
    statement: Statement, services: Services, headers: Headers, query_string: bytes
) -> CachedBody:
    """Return who the caller is and what it requests. Raises `PostgresAway`, or the first `Problem`."""
    credentials = read_credentials(headers)
    access = await authenticate(services.identities, credentials)
    org_id = access.org_id or ""
    values, unknown = read_values(query_string, statement.parameters)
    read_body = statement.read(services, org_id, values)
    require_known(unknown)
    if len(credentials.org_ids) > 1:
        raise InvalidParameter(fields={"X-Org-ID": "given more than once"})
    return CachedBody(access, read_body)


def make_body_etag(signer: Signer, org_id: str, body: bytes) -> str:
    """Return the strong ETag of a body."""
    return f'"{urlsafe_b64encode(signer.sign(b"body", org_id.encode() + b" " + body, 18)).decode()}"'
