"""How are the histories of many organisations imported, each of them whole or not at all?

Small histories share a transaction, so that each does not wait for a commit of its own. If one of them is refused, the
transaction is rolled back and the others are posted again. A large history has a transaction of its own.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

import psycopg
from psycopg import Connection

from feeds.database import begin
from feeds.page import EVERYTHING
from feeds.schema import Ledger
from worker.events import EventInvalid, EventRefused
from worker.intake.batch import Publish
from worker.intake.sorted_lines import OwnedLine
from worker.ledger.batch import Batch, Posted
from worker.ledger.dated_events import parse_dated_event
from worker.ledger.faults import describe, may_be_an_events
from worker.ledger.history import (
    HasMovements,
    HistoriesRefused,
    Line,
    RefusedLine,
    lock_new,
    post_large,
    post_whole,
)
from worker.ledger.read import read_now

PART_LINES = 2000
"""How many lines of a history are in memory at a time. A longer history is a large one."""
REPORTED_MAX = 100
"""How many bad lines of one organisation are reported."""


@dataclass(slots=True)
class Import:
    """What an import works with, and what it has done so far.

    Args:
        connection: To Postgres, in no transaction.
        ledger: The facts of the ledger.
        publish: Puts movements into the cached feeds; here it drops the feeds of the organisations that it is told.
        report: Is called with an organisation and a reason why its history is refused.
        advance: Is called with a number of lines that are done.
        check: Roll everything back.
        organisations: How many were imported, or could be.
        events: How many events they have.
        movements: How many movements these caused.
        refused: How many organisations were refused.
    """

    connection: Connection[Any]
    ledger: Ledger
    publish: Publish
    report: Callable[[str, RefusedLine], None]
    advance: Callable[[int], None] = lambda _: None
    check: bool = False
    organisations: int = 0
    events: int = 0
    movements: int = 0
    refused: int = 0


def import_histories(job: Import, lines: Iterable[OwnedLine]) -> None:
    """Import the histories in lines that are sorted by organisation and then by number.

    Raises psycopg.Error if Postgres fails: what was imported stays, and all others can be imported by a repeat.
    """
    now = read_now(job.connection)
    group: dict[str, list[Line]] = {}
    for org_id, rows in groupby(count_lines(lines, job.advance), key=itemgetter(0)):
        parts = read_parts(org_id, rows, now, job.ledger.usage_numbers)
        try:
            first, second = next(parts), next(parts, None)
        except HistoriesRefused as error:
            refuse(job, error.refused)
            continue
        if second:
            import_large(job, org_id, chain([first, second], parts))
            continue
        group[org_id] = first
        if sum(map(len, group.values())) >= PART_LINES:
            import_group(job, group)
            group = {}
    import_group(job, group)


def count_lines(lines: Iterable[OwnedLine], advance: Callable[[int], None]) -> Iterator[OwnedLine]:
    """Yield the lines, and tell after every thousand how far they are."""
    for number, line in enumerate(lines, 1):
        yield line
        if number % 1000 == 0:
            advance(1000)


def read_parts(
    org_id: str, rows: Iterable[OwnedLine], now: datetime, usage_kinds: Collection[str]
) -> Iterator[list[Line]]:
    """Yield the events of an organisation in parts. Raises HistoriesRefused, with the first bad lines of the rest."""
    checked = check_lines(rows, now, usage_kinds)
    while part := list(islice(checked, PART_LINES)):
        if any(isinstance(line, RefusedLine) for line in part):
            bad = (line for line in chain(part, checked) if isinstance(line, RefusedLine))
            raise HistoriesRefused({org_id: list(islice(bad, REPORTED_MAX))})
        yield [line for line in part if isinstance(line, Line)]


def check_lines(rows: Iterable[OwnedLine], now: datetime, usage_kinds: Collection[str]) -> Iterator[Line | RefusedLine]:
    """Yield the event of each line of an organisation, or what is wrong with the line."""
    previous = datetime.min.replace(tzinfo=now.tzinfo)
    for _, number, raw in rows:
        try:
            event = parse_dated_event(raw, usage_kinds)
            if not previous <= event.at <= now:
                raise misdated("later than now" if event.at > now else "earlier than the organisation's line before")
        except EventRefused as reason:
            yield RefusedLine(number, reason)
        else:
            previous = event.at
            yield Line(number, event)


def misdated(problem: str) -> EventInvalid:
    """Return the refusal of an event whose `at` cannot be."""
    return EventInvalid("the event is not valid: at", {"at": f"must not be {problem}"})


def import_group(job: Import, histories: Mapping[str, list[Line]]) -> None:
    """Import small histories in one transaction; report those that cannot be imported."""
    while histories:
        try:
            with locked(job, list(histories)) as batch:
                post_whole(batch, histories)
        except HistoriesRefused as error:
            refuse(job, error.refused)
            histories = {org_id: lines for org_id, lines in histories.items() if org_id not in error.refused}
        except psycopg.Error as error:
            refuse_one(job, list(histories), error)
            for org_id in histories if len(histories) > 1 else ():
                import_group(job, {org_id: histories[org_id]})
            return
        else:
            note_imported(job, batch, sum(map(len, histories.values())))
            return


def import_large(job: Import, org_id: str, parts: Iterator[list[Line]]) -> None:
    """Import a history of any length in a transaction of its own, or report why it cannot be imported."""
    events = 0

    def counted() -> Iterator[list[Line]]:
        nonlocal events
        for part in parts:
            events += len(part)
            yield part

    try:
        with locked(job, [org_id]) as batch:
            post_large(batch, org_id, counted())
    except HistoriesRefused as error:
        refuse(job, error.refused)
    except psycopg.Error as error:
        refuse_one(job, [org_id], error)
    else:
        note_imported(job, batch, events)


@contextmanager
def locked(job: Import, org_ids: Sequence[str]) -> Iterator[Batch]:
    """Run a transaction that locks organisations which have nothing yet. Raises HistoriesRefused."""
    with begin(job.connection), job.connection.transaction(force_rollback=True) if job.check else nullcontext():
        yield lock_new(job.connection, job.ledger, org_ids)


def refuse(job: Import, refused: Mapping[str, Sequence[RefusedLine]]) -> None:
    """Report refused histories.

    Of an organisation that has movements, the cached feeds are dropped: an earlier import may have died after its
    commit, before it did so.
    """
    for org_id, lines in refused.items():
        job.refused += 1
        for line in lines:
            job.report(org_id, line)
    drop_feeds(job, {org_id for org_id, [first, *_] in refused.items() if isinstance(first.reason, HasMovements)})


def refuse_one(job: Import, org_ids: Sequence[str], error: psycopg.Error) -> None:
    """Report that Postgres refuses the history of one organisation; with several, nothing is known yet.

    Raises the error if no history can be at fault.
    """
    is_held = isinstance(error, psycopg.errors.LockNotAvailable)
    if not is_held and not may_be_an_events(error):
        raise error
    if len(org_ids) == 1:
        problem = "another process holds it, import it again" if is_held else f"posting it failed: {describe(error)}"
        refuse(job, {org_ids[0]: [RefusedLine(None, EventRefused(problem))]})


def note_imported(job: Import, batch: Batch, events: int) -> None:
    """Count what is committed, and drop the cached feeds: a reader may have cached an empty one."""
    job.organisations += len(batch.organisations)
    job.events += events
    job.movements += sum(organisation.counts[EVERYTHING] for organisation in batch.organisations.values())
    drop_feeds(job, set(batch.organisations))


def drop_feeds(job: Import, org_ids: set[str]) -> None:
    """Drop the cached feeds of organisations, so that they are read from Postgres."""
    if org_ids and not job.check:
        job.publish(job.connection, Posted(org_ids=org_ids), True)
