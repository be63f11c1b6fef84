"""Who is the caller, and which organisation may it read?"""

import asyncio
import hmac
import logging
import re
import time
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from feeds.bounded_map import BoundedMap
from feeds.endpoint.errors import Forbidden, IdentityMissing, Problem
from feeds.identifiers import ORG_ID_PATTERN
from feeds.keys import BILLING_READ, READING_ROLES, digest_of, is_well_formed
from feeds.postgres import Postgres, PostgresAway
from feeds.queries import load_queries
from feeds.single_flight import SingleFlight

SQL = load_queries(__file__)
log = logging.getLogger(__name__)

FRESH_S = 10.0
"""How long an access is used without checking the key again: a revoked key is refused within this time."""
USABLE_S = 300.0
"""How long an access is used while Postgres cannot be reached."""
CHECK_WITHIN_S = 0.9
RETRY_S = 5.0
"""How long a process waits before it checks a remembered key again, after Postgres could not be reached."""
DENIAL_FRESH_S = 1.0
ACCESSES_MAX = 10_000
DENIALS_MAX = 1_000

ORG_ID = re.compile(ORG_ID_PATTERN)
NO_ORG = ""
"""Stands for an `X-Org-ID` that no organisation can have."""


class Caller(NamedTuple):
    """The digest of a key, and the organisation that the request names: None if it names none."""

    digest: bytes
    named_org_id: str | None


class Access(NamedTuple):
    """What a caller may read.

    `org_id` is None for a personal key whose request named no organisation. `rate` is the key's limit in requests a
    second, if it has one. `checked_at` and `check_after` are on the monotonic clock.
    """

    org_id: str | None
    key_id: UUID
    rate: int | None
    expires_at: datetime | None
    checked_at: float
    check_after: float

    def is_fresh(self) -> bool:
        """Tell whether the key need not be checked in Postgres yet."""
        return time.monotonic() < self.check_after and (self.expires_at is None or datetime.now(UTC) < self.expires_at)


class Denial(NamedTuple):
    """Why a caller may not read."""

    problem: type[Problem]
    check_after: float


class FoundKey(NamedTuple):
    """A row of `find_identity`: the columns in their order."""

    digest: bytes
    key_id: UUID
    org_id: str | None
    permissions: list[str]
    expires_at: datetime | None
    has_ended: bool
    role: str | None
    is_use_due: bool
    rate: int | None


class Identities:
    """What this process remembers of callers. Its size is bounded."""

    def __init__(self, postgres: Postgres, single_flight: SingleFlight) -> None:
        self._postgres = postgres
        self._single_flight = single_flight
        self._accesses: BoundedMap[Caller, Access] = BoundedMap(ACCESSES_MAX)
        self._denials: BoundedMap[Caller, Denial] = BoundedMap(DENIALS_MAX)
        self._used = set[UUID]()

    async def identify(self, secret: str, named_org_id: str | None) -> Access:
        """Return what a key may read.

        Raises `IdentityMissing`, `Forbidden`, or `PostgresAway` if the key is not remembered and cannot be checked.
        """
        if named_org_id is not None and not ORG_ID.fullmatch(named_org_id):
            named_org_id = NO_ORG
        caller = Caller(digest_of(secret), named_org_id)
        access = self._accesses.get(caller)
        now = time.monotonic()
        if access is None or now >= access.check_after:
            if not is_well_formed(secret):
                raise IdentityMissing
            denial = self._denials.get(caller)
            if denial is not None and now < denial.check_after:
                raise denial.problem
            access = await self._check_or_recall(caller)
        if access.expires_at is not None and access.expires_at <= datetime.now(UTC):
            raise IdentityMissing
        return access

    async def note_uses(self) -> None:
        """Write when keys were last used, if any write is due. The note is lost while Postgres is away."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await self._postgres.fetch(SQL["note_uses"], {"key_ids": sorted(used)}, writes=True)
        except PostgresAway as away:
            log.warning("the last use of %d keys was not noted: %s", len(used), away)

    async def _check_or_recall(self, caller: Caller) -> Access:
        """Check a key in Postgres, or return the remembered access while Postgres is away."""
        try:
            async with asyncio.timeout(CHECK_WITHIN_S):
                return await self._single_flight.run(caller, lambda: self._check(caller))
        except (PostgresAway, TimeoutError) as error:
            access = self._accesses.get(caller)
            now = time.monotonic()
            if access is None or now - access.checked_at > USABLE_S:
                raise PostgresAway("this key is not remembered") from error
            check_after = min(now + RETRY_S, access.checked_at + USABLE_S)
            recalled = self._accesses[caller] = access._replace(check_after=check_after)
            return recalled

    async def _check(self, caller: Caller) -> Access:
        """Check a key in Postgres, and remember the outcome."""
        checked_at = time.monotonic()
        parameters = {"digest": caller.digest, "org_id": caller.named_org_id}
        rows = await self._postgres.fetch(SQL["find_identity"], parameters)
        self._accesses.pop(caller, None)
        try:
            key = require_valid(caller, FoundKey(*rows[0]) if rows else None)
            if key.is_use_due:
                self._used.add(key.key_id)
            org_id = require_permission(caller.named_org_id, key)
        except Problem as problem:
            self._denials.store(caller, Denial(type(problem), time.monotonic() + DENIAL_FRESH_S))
            raise
        self._denials.pop(caller, None)
        access = Access(org_id, key.key_id, key.rate, key.expires_at, checked_at, checked_at + FRESH_S)
        self._accesses.store(caller, access)
        return access


def require_valid(caller: Caller, key: FoundKey | None) -> FoundKey:
    """Return a key that exists and has not ended. Raises `IdentityMissing`."""
    if key is None or not hmac.compare_digest(key.digest, caller.digest) or key.has_ended:
        raise IdentityMissing
    return key


def require_permission(named_org_id: str | None, key: FoundKey) -> str | None:
    """Return the organisation that a valid key may read, None for a personal key whose request named none.

    Raises `Forbidden`. `key.role` is the role of a personal key's owner in the named organisation.
    """
    is_personal = key.org_id is None
    if is_personal and named_org_id is None:
        return None
    if BILLING_READ not in key.permissions:
        raise Forbidden
    if not (key.role in READING_ROLES if is_personal else named_org_id in {None, key.org_id}):
        raise Forbidden
    return key.org_id or named_org_id
