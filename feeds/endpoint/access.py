"""Which headers say who the caller is, and what may it read?"""

from typing import NamedTuple

from feeds.endpoint.answer import Headers
from feeds.endpoint.errors import IdentityMissing
from feeds.endpoint.identity import Access, Identities


class Credentials(NamedTuple):
    """The headers that identify the caller: every `Authorization` and every `X-Org-ID` that is not empty."""

    authorizations: list[str]
    org_ids: list[str]


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


def read_credentials(headers: Headers) -> Credentials:
    """Return the headers that identify the caller. An empty value means that the header is absent."""

    def values_of(wanted: bytes) -> list[str]:
        return [value.decode("latin-1") for name, value in headers if name == wanted and value]

    return Credentials(values_of(b"authorization"), values_of(b"x-org-id"))


def join_values(headers: Headers, name: bytes) -> str:
    """Return all values of a header as one."""
    return ",".join(value.decode("latin-1") for given, value in headers if given == name)


def has_two_hosts(headers: Headers) -> bool:
    """Tell whether the header `Host` is given more than once."""
    return [name for name, _ in headers].count(b"host") > 1
