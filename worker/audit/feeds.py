"""Is every cached feed what the ledger says?

Exact under load, and without a false alarm: lines never change, a cached count is never above that of a ledger
that is read after it, and one that is below that of a ledger that was read before it soon catches up.
"""

from collections.abc import Iterator, Mapping
from time import monotonic, sleep
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from feeds import store
from feeds.cached.format import WINDOW, FeedsAway, Hit, Miss
from feeds.cached.worker_connection import WorkerConnection
from feeds.cached.writer import read_cached
from feeds.page import Place, count_feeds, filter_of
from feeds.queries import load_queries
from worker.audit.ledger import Finding

SQL = load_queries(__file__)

CATCH_UP_S = 10.0
"""How long a batch may be on its way from the ledger to the cached feeds."""
LOOK_AGAIN_S = 0.1
TRIES = 3
SCAN_STEP = 1000


class FeedAudit(NamedTuple):
    """How many cached feeds were compared, and what was found."""

    cached_feeds: int
    findings: list[Finding]


class Sight(NamedTuple):
    """Ledger and cache, as one audit sees them."""

    connection: Connection[Any]
    link: WorkerConnection
    epoch: UUID
    usage_numbers: Mapping[str, int]

    def look(self, org_id: str) -> dict[int, Hit | Miss]:
        """Return all cached feeds of an organisation, at one moment."""
        return look(self.link, self.epoch, org_id, range(count_feeds(tuple(self.usage_numbers))))


def audit_feeds(
    connection: Connection[Any],
    link: WorkerConnection,
    usage_numbers: Mapping[str, int],
    org_id: str | None = None,
    within_s: float = CATCH_UP_S,
) -> FeedAudit:
    """Compare the cached feeds of one organisation, or of all, with the ledger.

    A feed that lags has `within_s` to catch up. Raises FeedsAway where the feeds' Redis cannot be used, or is
    another one, or of another epoch, at every try. The connection is in no transaction.
    """
    for attempt in range(1, TRIES + 1):
        sight = Sight(connection, link, read_epoch(connection), usage_numbers)
        try:
            return compare_all(sight, [org_id] if org_id else find_cached(sight), within_s)
        except FeedsAway:
            if attempt == TRIES:
                raise
            sleep(LOOK_AGAIN_S)
    raise AssertionError("the last try returns or raises")


def find_cached(sight: Sight) -> list[str]:
    """Return the organisations that have cached feeds, in order."""
    prefix = hash_key(make_stamp(sight.epoch, sight.feeds_redis.server()), "")[:-1]
    found: set[str] = set()
    cursor: Any = b"0"
    while True:
        [reply] = sight.link.ask([("SCAN", cursor, "MATCH", prefix + b"*}", "COUNT", SCAN_STEP)])
        if not isinstance(reply, list):
            raise FeedsAway(str(reply))
        cursor, keys = reply
        found.update(key[len(prefix) : -1].decode() for key in keys)
        if cursor == b"0":
            return sorted(found)


def compare_all(sight: Sight, org_ids: list[str], within_s: float) -> FeedAudit:
    """Compare the cached feeds of these organisations; fails as FeedsAway if another epoch begins meanwhile."""
    compared = 0
    findings: list[Finding] = []
    late: dict[str, dict[int, int]] = {}
    for org_id in org_ids:
        counts = read_counts(sight, org_id)
        looked = sight.look(org_id)
        compared += len(looked)
        for number, cached in looked.items():
            findings += compare(sight, org_id, number, cached)
        if behind := find_behind(looked, counts):
            late[org_id] = behind
    findings += wait_for(sight, late, within_s)
    require_epoch(sight)
    return FeedAudit(compared, findings)


def read_counts(sight: Sight, org_id: str) -> dict[int, int]:
    """Return the ledger's counts of an organisation's feeds, those that it has."""
    rows = sight.connection.execute(SQL["read_counts"], {"org_id": org_id}).fetchall()
    return dict(enumerate(rows[0][0])) if rows else {}


def find_behind(looked: Mapping[int, Hit | Miss], counts: Mapping[int, int]) -> dict[int, int]:
    """Return the feeds whose cached count is below the ledger's, with the ledger's."""
    return {
        number: counts[number]
        for number, cached in looked.items()
        if isinstance(cached, Hit) and cached.total < counts.get(number, 0)
    }


def compare(sight: Sight, org_id: str, number: int, cached: Hit | Miss) -> Iterator[Finding]:
    """Yield the first thing about a cached feed that the ledger, read now, does not know."""
    where = f"feed {number}"
    if isinstance(cached, Miss):
        yield Finding(org_id, "cached_list", where, "entries that prove themselves", f"{cached.reason} ones")
        return
    listed = len(cached.entries)
    place = Place(listed, ceiling=cached.total, floor=cached.total - listed)
    query, parameters = store.ask(sight.usage_numbers, org_id, filter_of(number, tuple(sight.usage_numbers)), place)
    try:
        lines = store.gather(place, sight.connection.execute(query, parameters).fetchall())
    except store.TornLedger as error:
        yield Finding(org_id, "cached_line", where, "lines to compare with", f"in the ledger, {error}")
        return
    if cached.total > lines.total:
        yield Finding(org_id, "cached_count", where, f"{lines.total} at most", str(cached.total))
    elif listed not in {0, min(cached.total, WINDOW)}:
        yield Finding(org_id, "cached_list", where, f"{min(cached.total, WINDOW)} entries, or none", f"{listed}")
    else:
        for ordinal, line, entry in zip(range(cached.total, 0, -1), lines.entries, cached.entries, strict=False):
            if line != entry:
                place_of_line = f"{where}, ordinal {ordinal}"
                yield Finding(org_id, "cached_line", place_of_line, line.decode(), entry.decode(errors="replace"))
                return


def wait_for(sight: Sight, late: dict[str, dict[int, int]], within_s: float) -> Iterator[Finding]:
    """Look again until late feeds have caught up or are gone; yield those that do neither in time."""
    deadline = monotonic() + within_s
    looked: dict[str, dict[int, Hit | Miss]] = {}
    while late and monotonic() < deadline:
        sleep(LOOK_AGAIN_S)
        require_epoch(sight)
        looked = {org_id: sight.look(org_id) for org_id in late}
        still = {org_id: find_behind(looked[org_id], counts) for org_id, counts in late.items()}
        late = {org_id: counts for org_id, counts in still.items() if counts}
    for org_id, counts in late.items():
        for number, count in counts.items():
            cached = looked[org_id][number].total if org_id in looked else None
            yield Finding(org_id, "cached_count", f"feed {number}", f"{count} within {within_s:g} s", str(cached))


def require_epoch(sight: Sight) -> None:
    """Fail unless what was looked at may still be served."""
    if read_epoch(sight.connection) != sight.epoch:
        raise FeedsAway("another epoch has begun")
