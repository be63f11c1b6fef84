"""What did this very question come to before?

Readers ask the same again and again. Who asks, for what, and the page that was sent are kept for each combination of
key, `X-Org-ID` and query string. What may have changed since is asked for: of Redis the count each time, of
`feeds.endpoint.identity` the key as often as it would ask for itself.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from feeds.cached.reader import Revalidation
from feeds.endpoint.identity import Access
from feeds.endpoint.page_body import PageRequest

KEPT = 2048
"""How many, of all readers: a page of 20 lines has 5 kB, one of 100 long ones 30."""
QUERY_BYTES = 512

Headers = list[tuple[bytes, bytes]]


class RequestKey(NamedTuple):
    """A request, as far as it says who asks and what for; of the key a digest, as nothing else is kept of it."""

    key_digest: bytes
    named_org_id: bytes | None
    query_string: bytes


class Page(NamedTuple):
    """A page as it is sent, and the moment of its feed that it shows."""

    epoch: UUID
    total: int
    etag: str
    headers: Headers
    body: bytes


@dataclass(slots=True)
class CachedAnswer:
    """What a question came to: what the key grants, what is asked, and the page that was last sent, true or not.

    `check` asks whether that is still true; it is made when the page is first asked for again.
    """

    access: Access
    ask: PageRequest
    page: Page | None = None
    check: Revalidation | None = None

    @property
    def org_id(self) -> str:
        """Return whose lines are asked for."""
        return self.access.org_id or ""

    def holds(self) -> bool:
        """Tell whether the key need not be asked about yet."""
        expires_at = self.access.expires_at
        return time.monotonic() < self.access.ask_after and (expires_at is None or datetime.now(UTC) < expires_at)


class AnswerCache:
    """The questions most lately understood; the eldest goes first."""

    def __init__(self) -> None:
        self._meanings = OrderedDict[RequestKey, CachedAnswer]()

    def find(self, question: RequestKey | None) -> CachedAnswer | None:
        """Return what a question came to, while that holds."""
        meaning = self._meanings.get(question) if question is not None else None
        return meaning if meaning is not None and meaning.holds() else None

    def keep(self, question: RequestKey | None, meaning: CachedAnswer) -> None:
        """Keep what a question came to, with the page of the last time if it is for the same lines."""
        if question is None:
            return
        before = self._meanings.pop(question, None)
        if before is not None and (before.org_id, before.ask) == (meaning.org_id, meaning.ask):
            meaning.page, meaning.check = before.page, before.check
        self._meanings[question] = meaning
        if len(self._meanings) > KEPT:
            self._meanings.popitem(last=False)


def read_request_key(given: Mapping[bytes, bytes], query_string: bytes) -> RequestKey | None:
    """Return the question of a request whose headers come once each; None for one without a key, or that is long."""
    authorization = given.get(b"authorization")
    if authorization is None or len(query_string) > QUERY_BYTES:
        return None
    return RequestKey(sha256(authorization).digest(), given.get(b"x-org-id"), query_string)
