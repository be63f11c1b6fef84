"""Is the ledger what the contract says, at one moment?"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from threading import Event
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import tuple_row
from redis import Redis

from feeds.queries import load_queries
from worker.intake.streams import stream_of

SQL = load_queries(__file__)

RULES = (
    "find_misplaced",
    "find_misplaced_usage",
    "find_torn_usages",
    "find_wrong_draws",
    "find_wrong_grants",
    "find_wrong_totals",
    "find_wrong_last_hashes",
)
"""The queries that check a range of organisations."""
LARGEST_ID = b"18446744073709551615-18446744073709551615"


Row = tuple[Any, ...]


class Range(NamedTuple):
    """Organisations by their numbers, both ends included."""

    first_org: int
    last_org: int


EVERY_ORGANISATION = Range(0, 2**63 - 1)


class Finding(NamedTuple):
    """One thing that is not as it must be. `place` says where: a position, a grant, a feed, a stream."""

    org_id: str | None
    rule: str
    place: str
    expected: str
    found: str


class NotedHash(NamedTuple):
    """A line that one can note, and its hash (64 hexadecimal digits): it stands for all up to it."""

    position: int
    hash: str


class Audit(NamedTuple):
    """What was checked, all at one moment, and what was found. `newest` is the one organisation's last line."""

    organisations: int
    movements: int
    grants: int
    findings: list[Finding]
    newest: NotedHash | None = None


class UnknownOrganisation(LookupError):  # noqa: N818 -- what is so, in our words
    """No event, key or member ever named it."""


def audit_ledger(
    connection: Connection[Any],
    org_id: str | None = None,
    noted: NotedHash | None = None,
    beside: Sequence[Connection[Any]] = (),
) -> Audit:
    """Recompute every invariant of one organisation, or of all, in one snapshot: exact under load.

    A line of that one organisation, noted earlier, must still be there: then nothing up to it was changed.
    All organisations are shared out among this connection and those `beside` it, to the same database: a rule keeps
    one core of Postgres busy. Raises UnknownOrganisation. The connections are in no transaction.
    """
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(SQL["begin_snapshot"])
        organisations = EVERY_ORGANISATION if org_id is None else number_organisation(cursor, org_id)
        [(org_count, movements, grants)] = cursor.execute(SQL["count_checked"], organisations._asdict()).fetchall()
        found = check_all(connection, organisations, beside if org_id is None else ())
        found += cursor.execute(SQL["find_wrong_offsets"]).fetchall()
        newest = None
        if org_id is not None:
            org_no = organisations.first_org
            found += find_changed(cursor, org_no, noted)
            newest = next(
                (NotedHash(*row) for row in cursor.execute(SQL["read_newest_line"], {"org_no": org_no})), None
            )
        org_nos = list({row[0] for row in found})
        names: dict[int | None, str] = dict(cursor.execute(SQL["name_organisations"], {"org_nos": org_nos}).fetchall())
    findings = [Finding(names.get(org_no), *facts) for org_no, *facts in found]
    return Audit(org_count, movements, grants, findings, newest)


def number_organisation(cursor: Cursor[Any], org_id: str) -> Range:
    """Return the range that holds this organisation alone."""
    row = cursor.execute(SQL["number_organisation"], {"org_id": org_id}).fetchone()
    if row is None:
        raise UnknownOrganisation(org_id)
    return Range(row[0], row[0])


def check_all(connection: Connection[Any], organisations: Range, beside: Sequence[Connection[Any]]) -> list[Row]:
    """Return what all rules find, each connection in its share of the organisations, in the first one's snapshot."""
    if not beside:
        return list(chain.from_iterable(check(connection, organisations, Event())))
    stopped = Event()
    first, *shares = share_out(connection, organisations, 1 + len(beside))
    [(snapshot,)] = connection.execute(SQL["export_snapshot"]).fetchall()

    def check_beside(other: Connection[Any], share: Range) -> list[list[Row]]:
        with other.transaction():
            other.execute(SQL["begin_snapshot"])
            other.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
            return check(other, share, stopped)

    with ThreadPoolExecutor(max_workers=len(beside)) as threads:
        others = [threads.submit(check_beside, *pair) for pair in zip(beside, shares, strict=False)]
        try:
            parts = [check(connection, first, stopped), *(other.result() for other in others)]
        except BaseException:
            stopped.set()
            for other in beside:
                with suppress(psycopg.Error):
                    other.cancel_safe()
            raise
    return [row for of_rule in zip(*parts, strict=True) for rows in of_rule for row in rows]


def share_out(connection: Connection[Any], organisations: Range, parts: int) -> list[Range]:
    """Return so many ranges at most, which hold about as many movements each and together every organisation."""
    starts = [row[0] for row in connection.execute(SQL["share_out"], {"parts": parts})][1:parts]
    firsts = [organisations.first_org, *starts]
    lasts = [*(start - 1 for start in starts), organisations.last_org]
    return [Range(*pair) for pair in zip(firsts, lasts, strict=True)]


def check(connection: Connection[Any], share: Range, stopped: Event) -> list[list[Row]]:
    """Return what each rule finds in a share of the organisations; those that come before it is stopped."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return [cursor.execute(SQL[rule], share._asdict()).fetchall() for rule in RULES if not stopped.is_set()]


def find_changed(cursor: Cursor[Any], org_no: int, noted: NotedHash | None) -> Iterator[Row]:
    """Yield a noted line that is not what it was: the chain, checked elsewhere, answers for those before it."""
    if noted is None:
        return
    row = cursor.execute(SQL["read_hash"], {"org_no": org_no, "position": noted.position}).fetchone()
    found = row[0] if row else "no such line"
    if found != noted.hash:
        yield org_no, "noted_hash", f"position {noted.position}", noted.hash, found


def audit_streams(redis: Redis, event_shards: int) -> list[Finding]:
    """Return the shards whose key is no stream or can take no more entries, and the streams that nobody reads."""
    keys = [stream_of(shard) for shard in range(event_shards)]
    pipeline = redis.pipeline(transaction=False)
    for key in keys:
        pipeline.type(key)
    kinds = [kind.decode() for kind in pipeline.execute()]
    findings = [
        Finding(None, "stream_is_a_stream", key, "a stream", f"a {kind}")
        for key, kind in zip(keys, kinds, strict=True)
        if kind not in {"stream", "none"}
    ]
    for key, kind in zip(keys, kinds, strict=True):
        if kind == "stream" and has_no_room(redis, key):
            findings.append(Finding(None, "stream_has_room", key, "an id below the largest", LARGEST_ID.decode()))
    return [*findings, *find_stray_streams(redis, set(keys))]


def has_no_room(redis: Redis, key: str) -> bool:
    """Tell whether the largest id of all was given out: Redis refuses every further entry."""
    return bool(redis.xinfo_stream(key)["last-generated-id"] == LARGEST_ID)


def find_stray_streams(redis: Redis, keys: set[str]) -> Iterator[Finding]:
    """Yield streams of shards that the ledger does not have: some producer has another EVENT_SHARDS."""
    for key in redis.scan_iter(match="events:{*}", count=1000, _type="stream"):
        name = key.decode("utf-8", "backslashreplace")
        if name not in keys and redis.xlen(key):
            yield Finding(None, "stream_has_a_shard", name, "no entries", f"{redis.xlen(key)} entries")
