"""Which count of each feed has this process already served?

It keeps a process from serving a page that is older than one it served before.
"""

from typing import NamedTuple
from uuid import UUID

from feeds.bounded_map import BoundedMap

FEEDS_MAX = 100_000
"""How many feeds a process remembers."""


class Served(NamedTuple):
    """The highest count that was served of a feed, and the epoch in which it was read."""

    epoch: UUID | None
    total: int


class HighestServed:
    """The highest counts that one process has served, by organisation and feed number."""

    def __init__(self) -> None:
        self._served: BoundedMap[tuple[str, int], Served] = BoundedMap(FEEDS_MAX)

    def is_older(self, org_id: str, feed: int, total: int, epoch: UUID | None) -> bool:
        """Tell whether a cached count is lower than one served before; if it is not, note it."""
        served = self._served.get((org_id, feed))
        if served is not None and total <= served.total:
            self._served.move_to_end((org_id, feed))
            return total < served.total
        self._served.store((org_id, feed), Served(epoch, total))
        return False

    def note_read(self, org_id: str, feed: int, total: int, epoch: UUID) -> bool:
        """Note a count that Postgres gave, and tell whether it may be served: it is not lower than one of its epoch.

        In a new epoch the ledger may have been restored, so there a lower count is right and replaces the old one.
        """
        served = self._served.get((org_id, feed))
        is_same_epoch = served is not None and served.epoch == epoch
        highest = max(total, served.total) if served is not None and is_same_epoch else total
        self._served.store((org_id, feed), Served(epoch, highest))
        return total >= highest
