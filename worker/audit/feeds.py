"""Does every cached feed agree with the ledger?

The comparison is exact under load and gives no false alarm. Movements never change. A cached count is never above a
count that is read from the ledger later. A cached count that is below a count read from the ledger earlier soon catches
up.
"""

from collections.abc import Iterator, Mapping
from time import monotonic, sleep
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from feeds import store
from feeds.cached.epoch import read_epoch
from feeds.cached.format import BALANCE, WINDOW, FeedsAway, Hit, Miss, hash_key, make_stamp
from feeds.cached.worker_connection import WorkerConnection
from feeds.cached.writer import read_cached
from feeds.database import READING, begin
from feeds.page import Place, count_feeds, filter_of
from feeds.queries import load_queries
from worker.audit.finding import Finding

SQL = load_queries(__file__)

CATCH_UP_WITHIN_S = 10.0
"""How long a batch may take from the ledger to the cached feeds."""
RETRY_EVERY_S = 0.1
TRIES = 3
SCAN_COUNT = 1000


class FeedAudit(NamedTuple):
    """How many cached feeds were compared, and what was found."""

    cached_feeds: int
    findings: list[Finding]


class Comparison(NamedTuple):
    """What one try compares: the ledger behind `connection`, and what `feeds_redis` holds of it under one epoch."""

    connection: Connection[Any]
    feeds_redis: WorkerConnection
    epoch: UUID
    usage_numbers: Mapping[str, int]

    def read_cached(self, org_id: str) -> dict[int, Hit | Miss]:
        """Return all cached feeds of an organisation at one moment, by their numbers. Raises FeedsAway."""
        feeds = range(count_feeds(tuple(self.usage_numbers)))
        return read_cached(self.feeds_redis, self.epoch, org_id, [*feeds, BALANCE])

    def read_counts(self, org_id: str) -> dict[int, int]:
        """Return the ledger's counts of an organisation's feeds, by their numbers; also the one of its balance."""
        with begin(self.connection, READING):
            rows = self.connection.execute(SQL["read_counts"], {"org_id": org_id}).fetchall()
        return {
            number: count
            for counts, revision in rows
            for number, count in [*enumerate(counts), (BALANCE, revision + 1)]
        }

    def require_epoch(self) -> None:
        """Raise FeedsAway if a new epoch has begun: then nothing that was compared is served any more."""
        if read_epoch(self.connection) != self.epoch:
            raise FeedsAway("another epoch has begun")


def audit_feeds(
    connection: Connection[Any],
    feeds_redis: WorkerConnection,
    usage_numbers: Mapping[str, int],
    org_id: str | None = None,
    within_s: float = CATCH_UP_WITHIN_S,
) -> FeedAudit:
    """Compare cached feeds with the ledger.

    Args:
        connection: To Postgres, in no transaction.
        feeds_redis: To the feeds' Redis.
        usage_numbers: The ledger's usage kinds.
        org_id: Compare only the feeds of this organisation; None for all.
        within_s: How long a feed that lags may take to catch up.

    Raises:
        FeedsAway: At every try the feeds' Redis could not be used, became another server, or a new epoch began.
    """
    for attempt in range(1, TRIES + 1):
        comparison = Comparison(connection, feeds_redis, read_epoch(connection), usage_numbers)
        try:
            return compare_feeds(comparison, [org_id] if org_id else list_cached(comparison), within_s)
        except FeedsAway:
            if attempt == TRIES:
                raise
            sleep(RETRY_EVERY_S)
    raise AssertionError("the last try returns or raises")


def list_cached(comparison: Comparison) -> list[str]:
    """Return the organisations that have cached feeds, sorted. Raises FeedsAway."""
    pattern = hash_key(make_stamp(comparison.epoch, comparison.feeds_redis.server()), "*")
    prefix, _, suffix = pattern.partition(b"*")
    org_ids: set[str] = set()
    cursor: Any = b"0"
    while True:
        [reply] = comparison.feeds_redis.send([("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)])
        if not isinstance(reply, list):
            raise FeedsAway(str(reply))
        cursor, keys = reply
        org_ids.update(key.removeprefix(prefix).removesuffix(suffix).decode() for key in keys)
        if cursor == b"0":
            return sorted(org_ids)


def compare_feeds(comparison: Comparison, org_ids: list[str], within_s: float) -> FeedAudit:
    """Compare the cached feeds of these organisations. Raises FeedsAway, also if another epoch begins meanwhile."""
    compared = 0
    findings: list[Finding] = []
    lagging: dict[str, dict[int, int]] = {}
    for org_id in org_ids:
        counts = comparison.read_counts(org_id)  # before the cache, which must reach them
        cached_feeds = comparison.read_cached(org_id)
        compared += len(cached_feeds)
        for number, cached in cached_feeds.items():
            findings += compare_feed(comparison, org_id, number, cached)
        if behind := find_lagging(cached_feeds, counts):
            lagging[org_id] = behind
    findings += wait_for_lagging(comparison, lagging, within_s)
    comparison.require_epoch()
    return FeedAudit(compared, findings)


def find_lagging(cached_feeds: Mapping[int, Hit | Miss], counts: Mapping[int, int]) -> dict[int, int]:
    """Return the numbers of the feeds whose cached count is below the ledger's, each with the ledger's count."""
    return {
        number: counts[number]
        for number, cached in cached_feeds.items()
        if isinstance(cached, Hit) and cached.total < counts.get(number, 0)
    }


def compare_feed(comparison: Comparison, org_id: str, number: int, cached: Hit | Miss) -> Iterator[Finding]:
    """Yield the first thing in a cached feed that differs from the ledger, which is read now."""
    place = f"feed {number}"
    if isinstance(cached, Miss):
        yield Finding(org_id, "cached_list", place, "valid items", f"{cached.reason} items")
        return
    if number == BALANCE:
        count = comparison.read_counts(org_id).get(BALANCE, 1)
        if cached.total > count:
            yield Finding(org_id, "cached_count", "balance", f"revision {count - 1} at most", str(cached.total - 1))
        return
    size = len(cached.items)
    window = Place(size, ceiling=cached.total, floor=cached.total - size)
    feed = filter_of(number, tuple(comparison.usage_numbers))
    query, parameters = store.page_query(comparison.usage_numbers, org_id, feed, window)
    try:
        with begin(comparison.connection, READING):
            stored = store.collect_slice(window, comparison.connection.execute(query, parameters).fetchall())
    except store.TornLedger as error:
        yield Finding(org_id, "cached_line", place, "movements to compare with", f"in the ledger, {error}")
        return
    if cached.total > stored.total:
        yield Finding(org_id, "cached_count", place, f"{stored.total} at most", str(cached.total))
    elif size not in {0, min(cached.total, WINDOW)}:
        yield Finding(org_id, "cached_list", place, f"{min(cached.total, WINDOW)} items, or none", str(size))
    else:
        for ordinal, item, cached_item in zip(range(cached.total, 0, -1), stored.items, cached.items, strict=False):
            if item != cached_item:
                expected, found = item.decode(), cached_item.decode(errors="replace")
                yield Finding(org_id, "cached_line", f"{place}, ordinal {ordinal}", expected, found)
                return


def wait_for_lagging(comparison: Comparison, lagging: dict[str, dict[int, int]], within_s: float) -> Iterator[Finding]:
    """Wait until lagging feeds reach their counts or are no longer cached. Yield those that do neither in time."""
    deadline = monotonic() + within_s
    cached_feeds: dict[str, dict[int, Hit | Miss]] = {}
    while lagging and monotonic() < deadline:
        sleep(RETRY_EVERY_S)
        comparison.require_epoch()
        cached_feeds = {org_id: comparison.read_cached(org_id) for org_id in lagging}
        behind = {org_id: find_lagging(cached_feeds[org_id], counts) for org_id, counts in lagging.items()}
        lagging = {org_id: counts for org_id, counts in behind.items() if counts}
    for org_id, counts in lagging.items():
        for number, count in counts.items():
            found = cached_feeds[org_id][number].total if org_id in cached_feeds else None
            yield Finding(org_id, "cached_count", f"feed {number}", f"{count} within {within_s:g} s", str(found))
