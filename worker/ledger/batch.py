"""What does the posting of a batch work with, and what is its result?"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from psycopg import Connection

from feeds.movement import Movement
from feeds.schema import Ledger
from worker.ledger.entries import Refusal
from worker.ledger.organisation import Organisation, Terms


@dataclass(slots=True)
class Posted:
    """The result of a batch.

    `movements` are the new ones, by organisation. `revisions` are those of the organisations in which a movement or a
    grant has changed. `org_ids` are the organisations that the batch names; `refusals` is what was buried. `types`
    counts the accepted events by type, repeats included. `splits` counts how often the batch was halved to find an
    event that cannot be posted. `locking` is how long Postgres took to find and lock the organisations.
    """

    movements: dict[str, list[Movement]] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    org_ids: set[str] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    splits: int = 0
    locking: timedelta = timedelta()

    def merge(self, other: "Posted") -> "Posted":
        """Return the result of this half of a batch and the `other`, which was posted after it."""
        movements = defaultdict(list, self.movements)
        for org_id, later in other.movements.items():
            movements[org_id] = movements[org_id] + later
        return Posted(
            dict(movements),
            self.revisions | other.revisions,
            self.org_ids | other.org_ids,
            self.refusals + other.refusals,
            self.types + other.types,
            self.splits + other.splits + 1,
            self.locking + other.locking,
        )


@dataclass(slots=True)
class Batch:
    """What the posting of a batch works with while its organisations are locked.

    `org_nos` and `organisations` go by org_id. `buried` holds, by stream and entry id, the digests of the entries that
    are dead letters already. `terms` is set once the organisations are locked.
    """

    connection: Connection[Any]
    ledger: Ledger
    posted: Posted
    org_nos: dict[str, int] = field(default_factory=dict)
    organisations: dict[str, Organisation] = field(default_factory=dict)
    buried: dict[tuple[str, str], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    terms: Terms = field(init=False)
