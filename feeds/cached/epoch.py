"""Which epoch of the ledger do cache keys carry, and how does each side learn it?

An epoch is the random id of one history of the ledger. `rebuild` starts a new one, and so does a worker if the feeds'
Redis stays away. Then no process ever reads again what was cached before.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import scalar_row

from feeds.cached.format import FeedsAway, Server, make_stamp
from feeds.database import READING, begin, fetch
from feeds.postgres import Postgres, PostgresAway
from feeds.queries import load_queries
from feeds.schema import LedgerEmpty

if TYPE_CHECKING:  # the worker needs this module, but none of the multiplexer's libraries
    from feeds.cached.multiplexer import Multiplexer

SQL = load_queries(__file__)

LEARN_EVERY_S = 0.15
"""How long the endpoint waits between two reads of the epoch."""
LEARN_WITHIN_S = 0.3
"""How long one such read may take."""
KNOWN_WITHIN_S = LEARN_WITHIN_S + LEARN_EVERY_S + LEARN_WITHIN_S + 0.1
"""How long a new epoch may be unknown to an endpoint, if Postgres answers in time: the endpoint may have just read the
old epoch, then pauses, then reads again. It is less than the second after which another drain takes over a batch that
is
posted but not yet deleted."""


def read_epoch(connection: Connection[tuple[object, ...]], opening: bytes = READING) -> UUID:
    """Return the ledger's current epoch. Raises `LedgerEmpty`. With the opening `WRITING` a standby refuses."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        epochs: list[UUID] = fetch(cursor, SQL["read_epoch"], opening)
    if not epochs:
        raise LedgerEmpty
    return epochs[0]


def renew_epoch(connection: Connection[tuple[object, ...]], seen: UUID) -> None:
    """Start a new epoch, unless another process has already ended the one that was seen."""
    with begin(connection):
        connection.execute(SQL["renew_epoch"], {"seen": seen})


async def fetch_epoch(postgres: Postgres) -> UUID:
    """Return the ledger's current epoch. Raises `PostgresAway`, also if the ledger has no row (during a restore)."""
    rows = await postgres.fetch(SQL["read_epoch"], {})
    if not rows:
        raise PostgresAway(str(LedgerEmpty()))
    return UUID(str(rows[0][0]))


class Stamp(NamedTuple):
    """An epoch and a server, and their digest in every cache key: None while either of the two is unknown."""

    epoch: UUID | None
    server: Server | None
    digest: str | None


class EpochTracker:
    """The epoch as one endpoint process knows it.

    `current` is the epoch, None until it is known; `ended` is the one before it.

    Args:
        fetch: Reads the epoch from Postgres. It may raise `PostgresAway`.
        multiplexer: The connection to the feeds' Redis. Its `server` is the one that the next command goes to.
    """

    def __init__(self, fetch: Callable[[], Awaitable[UUID]], multiplexer: "Multiplexer") -> None:
        self.current: UUID | None = None
        self.ended: UUID | None = None
        self._fetch = fetch
        self._multiplexer = multiplexer
        self._learning = asyncio.Lock()
        self._stamp = Stamp(None, None, None)

    def stamp(self) -> Stamp:
        """Return what cache keys carry now: the same object for as long as it is true."""
        server = self._multiplexer.server
        if self._stamp.epoch is not self.current or self._stamp.server is not server:
            digest = None if self.current is None or server is None else make_stamp(self.current, server)
            self._stamp = Stamp(self.current, server, digest)
        return self._stamp

    async def learn(self) -> None:
        """Read the epoch from Postgres. Raises `FeedsAway` if Postgres does not answer: no key can be built."""
        async with self._learning:
            try:
                async with asyncio.timeout(LEARN_WITHIN_S):
                    epoch = await self._fetch()
            except (PostgresAway, TimeoutError) as error:
                raise FeedsAway(f"no epoch: {error}") from error
            if epoch != self.current:
                self.ended, self.current = self.current, epoch

    async def learn_or_keep(self) -> None:
        """Read the epoch from Postgres. If Postgres is down nothing can be committed, so the last epoch still holds."""
        try:
            await self.learn()
        except FeedsAway:
            return
