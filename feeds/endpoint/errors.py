"""What does a reader get instead of a page?"""

import json
import math
from collections.abc import Mapping

IDENTITY_MESSAGE = "An authenticated organization identity is required"


class Problem(Exception):  # noqa: N818 -- most of these are the reader's, none is ours to repair
    """An answer that is no page. `fields` says which parameter or header is at fault, where that helps."""

    status = 500
    code = "credit.usage.failed"
    message = "InternalError to list credit activity"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str = "", *, fields: Mapping[str, str] | None = None) -> None:
        self.message = message or self.message
        self.fields = dict(fields or {})
        super().__init__(self.message)

    def body(self) -> bytes:
        """Return the error's JSON."""
        fields = {"fields": self.fields} if self.fields else {}
        return json.dumps(
            {"object": "error", "code": self.code, "message": self.message} | fields, separators=(",", ":")
        ).encode()


class InternalError(Problem):
    """Nothing was wrong with the question. Ask again later."""


class IdentityMissing(Problem):
    """No key, or not one that holds. One body for all, so that nobody learns which keys exist."""

    status = 401
    code = "credit.handler.identity_missing"
    message = IDENTITY_MESSAGE
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(Problem):
    """A good key that may not read this."""

    status = 403
    code = "authorize.forbidden"
    message = "This key does not grant billing:read for the organization"


class InvalidFilter(Problem):
    """`kind` or `usage_kind` is not one that we know, or is repeated."""

    status = 400
    code = "credit.usage.invalid_filter"
    message = "A kind or usage_kind filter value is not recognized"


class InvalidPage(Problem):
    """`page`, `limit` or `cursor` cannot be used."""

    status = 400
    code = "credit.usage.invalid_page"
    message = "A page, limit or cursor value is not usable"


class InvalidParameter(Problem):
    """A parameter that we do not know, or a header given twice."""

    status = 400
    code = "credit.usage.invalid_parameter"
    message = "A parameter is not recognized"


class NotFound(Problem):
    """There is nothing at this path."""

    status = 404
    code = "not_found"
    message = "There is nothing at this path"


class MethodNotAllowed(Problem):
    """This path answers to GET and HEAD alone."""

    status = 405
    code = "method_not_allowed"
    message = "This path answers to GET and HEAD alone"
    headers = ((b"allow", b"GET, HEAD"),)


class RateLimited(Problem):
    """Over the key's rate. Wait as `Retry-After` says."""

    status = 429
    code = "rate_limited"
    message = "Too many requests for this key"

    def __init__(self, wait_s: float) -> None:
        """Refuse a key that has its next turn in `wait_s` seconds."""
        super().__init__()
        self.headers = ((b"retry-after", b"%d" % max(1, math.ceil(wait_s))),)
