"""Which errors does the endpoint answer with?"""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType

IDENTITY_MESSAGE = "An authenticated organization identity is required"


FAILED = MappingProxyType(
    {"usage": "list credit activity", "balance": "read the credit balance", "grants": "list credit grants"}
)
"""What a path does, by its noun. The noun is part of the codes of the errors that each path has."""


class Problem(Exception):  # noqa: N818 -- an answer to the caller, not an error of ours
    """An error answer. `fields` names the parameter or header at fault, if there is one, and says what is wrong.

    Code and message may hold `{noun}` and `{failed}`, which depend on the path.
    """

    status = 500
    code = "credit.{noun}.failed"
    message = "Failed to {failed}"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str = "", *, fields: Mapping[str, str] | None = None) -> None:
        self.message = message or self.message
        self.fields = dict(fields or {})
        super().__init__(self.message)

    @classmethod
    def code_of(cls, noun: str) -> str:
        """Return the code as the path of this noun answers it."""
        return cls.code.format(noun=noun)

    @classmethod
    def message_of(cls, noun: str) -> str:
        """Return the message that the path of this noun answers, unless an error has one of its own."""
        return cls.message.format(failed=FAILED[noun])

    def body(self, noun: str) -> bytes:
        """Return the error's JSON, as the path of this noun answers it."""
        fields = {"fields": self.fields} if self.fields else {}
        document = {"object": "error", "code": self.code_of(noun), "message": self.message.format(failed=FAILED[noun])}
        return json.dumps(document | fields, separators=(",", ":")).encode()


class InternalError(Problem):
    """The request was valid, but cannot be answered now. Send it again later."""


class IdentityMissing(Problem):
    """No key, or one that is not valid. The body is the same for all, so that no caller learns which keys exist."""

    status = 401
    code = "credit.handler.identity_missing"
    message = IDENTITY_MESSAGE
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(Problem):
    """A valid key that may not read this organisation."""

    status = 403
    code = "authorize.forbidden"
    message = "This key does not grant billing:read for the organization"


class InvalidFilter(Problem):
    """A filter, such as a kind or a time, is unusable or repeated."""

    status = 400
    code = "credit.{noun}.invalid_filter"
    message = "A kind or usage_kind filter value is not recognized"


class InvalidTime(InvalidFilter):
    """A time is unusable or repeated. Send RFC 3339 with an offset, like 2026-06-01T10:00:00Z, once."""

    message = "A time is not usable"


class InvalidPage(Problem):
    """`page`, `limit` or `cursor` cannot be used."""

    status = 400
    code = "credit.{noun}.invalid_page"
    message = "A page, limit or cursor value is not usable"


class InvalidParameter(Problem):
    """An unknown parameter, or a header given twice."""

    status = 400
    code = "credit.{noun}.invalid_parameter"
    message = "A parameter is not recognized"


class TwoHosts(InvalidParameter):
    """Two `Host` headers. A proxy may have read the other one, so the request is refused before anything else."""

    def __init__(self) -> None:
        super().__init__(fields={"Host": "given more than once"})


class NotFound(Problem):
    """There is nothing at this path."""

    status = 404
    code = "not_found"
    message = "There is nothing at this path"


class MethodNotAllowed(Problem):
    """This path answers only GET and HEAD."""

    status = 405
    code = "method_not_allowed"
    message = "This path answers only GET and HEAD"
    headers = ((b"allow", b"GET, HEAD"),)


class RateLimited(Problem):
    """The key is over its rate. Wait as long as `Retry-After` says."""

    status = 429
    code = "rate_limited"
    message = "Too many requests for this key"

    def __init__(self, wait_s: float) -> None:
        """Refuse a key whose next token is due in `wait_s` seconds."""
        super().__init__()
        self.headers = ((b"retry-after", b"%d" % max(1, math.ceil(wait_s))),)
