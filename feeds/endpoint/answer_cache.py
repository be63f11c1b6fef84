"""Remembers the last answer to each request.

Callers repeat the same requests. For each combination of key, `X-Org-ID` and query string this cache holds who the
caller is, what it requests and the page that was sent last. What may have changed since is checked again: the feed's
count in Redis for every request, the key in Postgres as often as `feeds.endpoint.identity` requires.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from feeds.bounded_map import BoundedMap
from feeds.cached.reader import Revalidation
from feeds.endpoint.answer import Answer, Headers
from feeds.endpoint.identity import Access
from feeds.endpoint.page_body import PageRequest

ANSWERS_MAX = 2048
"""How many answers one process remembers: a page of 20 items has 5 kB, a page of 100 long ones 30 kB."""
QUERY_BYTES_MAX = 512


class RequestKey(NamedTuple):
    """What identifies a request: a digest of its key (the key itself is not stored), the organisation, the query."""

    key_digest: bytes
    named_org_id: bytes | None
    query_string: bytes


class RenderedPage(NamedTuple):
    """A page as it was sent, and the epoch and count of its feed at that moment."""

    epoch: UUID
    total: int
    etag: str
    headers: Headers
    body: bytes


@dataclass(slots=True)
class CachedAnswer:
    """What is remembered of a request: what its key may read, what it requests, and the page that was sent last.

    The page may be outdated. `revalidation` is the request whether it is current, built when the page is first reused.
    """

    access: Access
    request: PageRequest
    page: RenderedPage | None = None
    revalidation: Revalidation | None = None

    @property
    def org_id(self) -> str:
        """Return the organisation whose movements are requested."""
        return self.access.org_id or ""


@dataclass(slots=True)
class CachedBody:
    """What is remembered of a request whose body is read each time: its access, what reads the body, the last answer.

    `answer` and `etag` are those of `body`.
    """

    access: Access
    read_body: Callable[[], Awaitable[bytes]]
    body: bytes | None = None
    etag: str = ""
    answer: Answer | None = None


class AnswerCache:
    """The answers to recent requests. When it is full, the answer that was stored longest ago is evicted."""

    def __init__(self) -> None:
        self._answers: BoundedMap[RequestKey, CachedAnswer] = BoundedMap(ANSWERS_MAX)

    def find(self, key: RequestKey | None) -> CachedAnswer | None:
        """Return what is remembered of a request, while its access is fresh."""
        answer = self._answers.get(key) if key is not None else None
        return answer if answer is not None and answer.access.is_fresh() else None

    def store(self, key: RequestKey | None, answer: CachedAnswer) -> None:
        """Remember an answer, and carry over the last page if it is for the same organisation and request."""
        if key is None:
            return
        before = self._answers.get(key)
        if before is not None and (before.org_id, before.request) == (answer.org_id, answer.request):
            answer.page, answer.revalidation = before.page, before.revalidation
        self._answers.store(key, answer)


def read_request_key(headers: Mapping[bytes, bytes], query_string: bytes) -> RequestKey | None:
    """Return what identifies a request whose headers occur once each; None if it has no key or is too long."""
    authorization = headers.get(b"authorization")
    if authorization is None or len(query_string) > QUERY_BYTES_MAX:
        return None
    return RequestKey(sha256(authorization).digest(), headers.get(b"x-org-id"), query_string)
