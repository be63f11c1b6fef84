"""What are answers made from?"""

from typing import NamedTuple

from feeds.bounded_map import BoundedMap
from feeds.cursor import Signer
from feeds.endpoint.answer_cache import AnswerCache, CachedBody, RequestKey
from feeds.endpoint.identity import Identities
from feeds.endpoint.rate_limit import RateLimiter
from feeds.read_through import Feeds


class Services(NamedTuple):
    """What answers are made from, for the lifetime of the app. `bodies` goes by a path's noun and the request."""

    signer: Signer
    feeds: Feeds
    identities: Identities
    rate_limiter: RateLimiter
    answers: AnswerCache
    bodies: BoundedMap[tuple[str, RequestKey], CachedBody]
