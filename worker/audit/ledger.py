"""Does the ledger hold its invariants, at one moment?

The invariants are those of worker/README.md.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from threading import Event
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import tuple_row

from feeds.database import begin
from feeds.queries import load_queries
from worker.audit.finding import Finding

SQL = load_queries(__file__)

RULES = (
    "find_wrong_order",
    "find_wrong_usage_ordinals",
    "find_wrong_overflows",
    "find_wrong_draws",
    "find_wrong_grants",
    "find_wrong_totals",
    "find_wrong_last_hashes",
    "find_wrong_labels",
)
"""The queries that check a range of organisations."""

Row = tuple[Any, ...]
"""A finding as a query returns it: the organisation's number, then the fields of Finding from `rule` on."""


class OrgRange(NamedTuple):
    """Organisations by their numbers, from the first to the last, both included."""

    first_org: int
    last_org: int


EVERY_ORGANISATION = OrgRange(0, 2**63 - 1)


class NotedHash(NamedTuple):
    """A position and the hash of its movement (64 hexadecimal digits). The hash proves all movements up to it."""

    position: int
    hash: str


class Audit(NamedTuple):
    """What was checked at one moment, and what was found.

    `newest` is the newest movement's hash if one organisation was checked and has movements.
    """

    organisations: int
    movements: int
    grants: int
    findings: list[Finding]
    newest: NotedHash | None = None


class UnknownOrganisation(LookupError):  # noqa: N818 -- it names a state, not a mistake of the program
    """No event, key or member has ever named this organisation."""


def audit_ledger(
    connection: Connection[Any],
    org_id: str | None = None,
    noted: NotedHash | None = None,
    others: Sequence[Connection[Any]] = (),
    *,
    parallel: bool = True,
) -> Audit:
    """Recompute every invariant in one snapshot, so the result is exact under load.

    Args:
        connection: To Postgres, in no transaction.
        org_id: Check only this organisation; None for all.
        noted: A hash of this organisation that was noted earlier. If it is still right, nothing up to it was changed.
        others: More connections to the same database, in no transaction. All organisations are divided among the
            connections, because a rule keeps only one core of Postgres busy.
        parallel: Whether a query may use parallel workers of Postgres, which share memory through /dev/shm.

    Raises:
        UnknownOrganisation: There is no organisation of this id.
        psycopg.errors.DiskFull: Postgres has no room left; if `parallel`, /dev/shm may be too small.
    """
    prepare = SQL["prepare_audit"] + (b"" if parallel else SQL["forbid_parallel"])
    with begin(connection, SQL["begin_snapshot"]), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(prepare)
        organisations = EVERY_ORGANISATION if org_id is None else find_organisation(cursor, org_id)
        [(org_count, movements, grants)] = cursor.execute(SQL["count_checked"], organisations._asdict()).fetchall()
        found = check_organisations(connection, organisations, others if org_id is None else (), prepare)
        found += cursor.execute(SQL["find_wrong_offsets"]).fetchall()
        newest = None
        if org_id is not None:
            found += find_changed(cursor, organisations.first_org, noted)
            newest = read_newest_hash(cursor, organisations.first_org)
        org_nos = list({row[0] for row in found})
        org_ids: dict[int | None, str] = dict(cursor.execute(SQL["read_org_ids"], {"org_nos": org_nos}).fetchall())
    findings = [Finding(org_ids.get(org_no), *facts) for org_no, *facts in found]
    return Audit(org_count, movements, grants, findings, newest)


def find_organisation(cursor: Cursor[Any], org_id: str) -> OrgRange:
    """Return the range that holds only this organisation. Raises UnknownOrganisation."""
    row = cursor.execute(SQL["find_organisation"], {"org_id": org_id}).fetchone()
    if row is None:
        raise UnknownOrganisation(org_id)
    return OrgRange(row[0], row[0])


def check_organisations(
    connection: Connection[Any], organisations: OrgRange, others: Sequence[Connection[Any]], prepare: bytes
) -> list[Row]:
    """Return what all rules find. Each connection checks its part of the organisations, in the first one's snapshot.

    `prepare` is the SQL with which each of the other connections begins.
    """
    if not others:
        return list(chain.from_iterable(check_range(connection, organisations, Event())))
    stopped = Event()
    first, *parts = divide(connection, organisations, 1 + len(others))
    [(snapshot,)] = connection.execute(SQL["export_snapshot"]).fetchall()
    import_snapshot = sql.SQL("SET TRANSACTION SNAPSHOT {};").format(snapshot).as_bytes(connection)

    def check_part(other: Connection[Any], part: OrgRange) -> list[list[Row]]:
        with begin(other, SQL["begin_snapshot"] + import_snapshot):
            other.execute(prepare)
            return check_range(other, part, stopped)

    with ThreadPoolExecutor(max_workers=len(others)) as threads:
        pending = [threads.submit(check_part, other, part) for other, part in zip(others, parts, strict=False)]
        try:
            results = [check_range(connection, first, stopped), *(part.result() for part in pending)]
        except BaseException:
            stopped.set()
            for other in others:
                with suppress(psycopg.Error):
                    other.cancel_safe()
            raise
    return [row for of_rule in zip(*results, strict=True) for rows in of_rule for row in rows]


def divide(connection: Connection[Any], organisations: OrgRange, parts: int) -> list[OrgRange]:
    """Return at most `parts` ranges, of about as many movements each, that together hold every organisation."""
    starts = [row[0] for row in connection.execute(SQL["divide"], {"parts": parts})][1:parts]
    firsts = [organisations.first_org, *starts]
    lasts = [*(start - 1 for start in starts), organisations.last_org]
    return [OrgRange(*ends) for ends in zip(firsts, lasts, strict=True)]


def check_range(connection: Connection[Any], organisations: OrgRange, stopped: Event) -> list[list[Row]]:
    """Return what each rule finds in a range of organisations. Omits the remaining rules once `stopped` is set."""
    parameters = organisations._asdict()
    with connection.cursor(row_factory=tuple_row) as cursor:
        return [cursor.execute(SQL[rule], parameters).fetchall() for rule in RULES if not stopped.is_set()]


def find_changed(cursor: Cursor[Any], org_no: int, noted: NotedHash | None) -> Iterator[Row]:
    """Yield a finding if a movement no longer has the hash that was noted.

    This covers the movements before it as well, because another rule checks that each hash includes the one before.
    """
    if noted is None:
        return
    row = cursor.execute(SQL["read_hash"], {"org_no": org_no, "position": noted.position}).fetchone()
    found = row[0] if row else "no such movement"
    if found != noted.hash:
        yield org_no, "noted_hash", f"position {noted.position}", noted.hash, found


def read_newest_hash(cursor: Cursor[Any], org_no: int) -> NotedHash | None:
    """Return the position and hash of an organisation's newest movement, None if it has none."""
    row = cursor.execute(SQL["read_newest_hash"], {"org_no": org_no}).fetchone()
    return NotedHash(*row) if row else None
