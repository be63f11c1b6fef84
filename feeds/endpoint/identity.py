"""Who asks, and for which organisation?"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

from feeds.endpoint.errors import Forbidden, IdentityMissing, Problem
from feeds.identifiers import ORG_ID_PATTERN
from feeds.keys import BILLING_READ, READING_ROLES, digest_of, is_well_formed
from feeds.postgres import Postgres, PostgresAway, Row
from feeds.queries import load_queries
from feeds.single_flight import SingleFlight

SQL = load_queries(__file__)
log = logging.getLogger(__name__)

FRESH_S = 10.0
"""How long an answer is used unasked: a revoked key stops within this."""
KEPT_S = 300.0
"""How long an answer is used where Postgres cannot be asked."""
ASK_S = 0.9
RETRY_S = 5.0
"""How long after Postgres could not be asked it is spared for a remembered key."""
REFUSED_FRESH_S = 1.0
KNOWN_MAX = 10_000
REFUSED_MAX = 1_000

ORG_ID = re.compile(ORG_ID_PATTERN)
NO_ORG = ""
"""In place of a name that no organisation can have."""

Kept = TypeVar("Kept")


class Caller(NamedTuple):
    """A key, and the organisation that its request names: None for none."""

    digest: bytes
    named_org_id: str | None


class Access(NamedTuple):
    """What Postgres said of an asker who may read; `org_id` is None for a person who named no organisation.

    Times are `time.monotonic`, but for `expires_at`. `rate`: how many requests a second the key may make, if there is
    a bound.
    """

    org_id: str | None
    key_id: UUID
    rate: int | None
    expires_at: datetime | None
    answered_at: float
    ask_after: float


class Denial(NamedTuple):
    """What Postgres said of an asker who may not read."""

    problem: type[Problem]
    ask_after: float


class Identities:
    """What this process remembers of askers. Each memory is bounded; the eldest goes first."""

    def __init__(self, postgres: Postgres, single_flight: SingleFlight) -> None:
        self._postgres = postgres
        self._single_flight = single_flight
        self._accesses: dict[Caller, Access] = {}
        self._denials: dict[Caller, Denial] = {}
        self._used = set[UUID]()

    async def identify(self, secret: str, named_org_id: str | None) -> Access:
        """Return the organisation whose lines a key may read, None in it for a good personal key that named none.

        Raises `IdentityMissing`, `Forbidden`, or `PostgresAway` where nothing is remembered.
        """
        if named_org_id is not None and not ORG_ID.fullmatch(named_org_id):
            named_org_id = NO_ORG
        asker = Caller(digest_of(secret), named_org_id)
        access = self._accesses.get(asker)
        now = time.monotonic()
        if access is None or now >= access.ask_after:
            if not is_well_formed(secret):
                raise IdentityMissing
            denial = self._denials.get(asker)
            if denial is not None and now < denial.ask_after:
                raise denial.problem
            access = await self._ask_or_recall(asker)
        if access.expires_at is not None and access.expires_at <= datetime.now(UTC):
            raise IdentityMissing
        return access

    async def note_uses(self) -> None:
        """Write down which keys were used. Costs nothing where none is due; lost where Postgres is away."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await self._postgres.fetch(SQL["note_uses"], {"key_ids": sorted(used)})
        except PostgresAway as away:
            log.warning("the last use of %d keys was not noted: %s", len(used), away)

    async def _ask_or_recall(self, asker: Caller) -> Access:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._single_flight.run(asker, lambda: self._ask(asker))
        except (PostgresAway, TimeoutError) as error:
            access = self._accesses.get(asker)
            now = time.monotonic()
            if access is None or now - access.answered_at > KEPT_S:
                raise PostgresAway("nothing is remembered of this key") from error
            ask_after = min(now + RETRY_S, access.answered_at + KEPT_S)
            kept = self._accesses[asker] = access._replace(ask_after=ask_after)
            return kept

    async def _ask(self, asker: Caller) -> Access:
        asked_at = time.monotonic()
        rows = await self._postgres.fetch(SQL["find_identity"], {"digest": asker.digest, "org_id": asker.named_org_id})
        self._accesses.pop(asker, None)
        try:
            org_id = self._judge(asker, rows)
        except Problem as problem:
            remember(self._denials, asker, Denial(type(problem), time.monotonic() + REFUSED_FRESH_S), REFUSED_MAX)
            raise
        self._denials.pop(asker, None)
        _, key_id, _, _, expires_at, *_, rate = rows[0]
        access = Access(org_id, key_id, rate, expires_at, asked_at, asked_at + FRESH_S)
        remember(self._accesses, asker, access, KNOWN_MAX)
        return access

    def _judge(self, asker: Caller, rows: list[Row]) -> str | None:
        if not rows or not hmac.compare_digest(rows[0][0], asker.digest):
            raise IdentityMissing
        _, key_id, org_id, permissions, _, has_ended, role, is_use_due, _ = rows[0]
        if has_ended:
            raise IdentityMissing
        if is_use_due:
            self._used.add(key_id)
        return judge(asker.named_org_id, org_id, permissions, role)


def judge(named_org_id: str | None, keys_org_id: str | None, permissions: list[str], role: str | None) -> str | None:
    """Return the organisation that a good key may read, None for a personal key that named none. Raises `Forbidden`.

    `keys_org_id` is None for a personal key, `role` its person's in the named organisation.
    """
    if keys_org_id is None and named_org_id is None:
        return None
    if BILLING_READ not in permissions:
        raise Forbidden
    if not (role in READING_ROLES if keys_org_id is None else named_org_id in {None, keys_org_id}):
        raise Forbidden
    return keys_org_id or named_org_id


def remember(memory: MutableMapping[Caller, Kept], asker: Caller, kept: Kept, at_most: int) -> None:
    """Keep what is known of an asker, as the youngest; the eldest makes room."""
    memory.pop(asker, None)
    while len(memory) >= at_most:
        del memory[next(iter(memory))]
    memory[asker] = kept
