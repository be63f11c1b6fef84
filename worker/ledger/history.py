"""How are the histories of organisations posted, each event at a time of its own?

The rules and the statements are those of a batch. The clock is the events' `at`, and a start or an end of a grant that
lies between two events is posted at its own time. So the ledger is as if it had always run here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from psycopg import Connection

from feeds.page import EVERYTHING
from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import EventRefused, UsageEvent
from worker.ledger.batch import Batch, Posted
from worker.ledger.dated_events import DatedEvent
from worker.ledger.organisation import Terms, forget
from worker.ledger.posting import post, settle_in_time
from worker.ledger.read import Span, lock_organisations, read_drawable, read_named
from worker.ledger.write import WRITTEN_AT_ONCE, write_grants, write_movements, write_organisations

SQL = load_queries(__file__)


class Line(NamedTuple):
    """A line of a history: its number in the file, and its event."""

    number: int
    event: DatedEvent


class RefusedLine(NamedTuple):
    """Why a history is refused. `number` is that of the line at fault, or None if it is no line's fault."""

    number: int | None
    reason: EventRefused


class HasMovements(EventRefused):
    """An organisation has movements or grants. If its history was imported before, nothing is left to do."""

    code = "has_movements"


class HistoriesRefused(Exception):  # noqa: N818 -- it names what happened to the histories
    """These histories cannot be posted, by organisation. Roll the transaction back, and post the others."""

    def __init__(self, refused: Mapping[str, Sequence[RefusedLine]]) -> None:
        super().__init__(f"refused: {', '.join(refused)}")
        self.refused = refused


def lock_new(connection: Connection[Any], ledger: Ledger, org_ids: Sequence[str]) -> Batch:
    """Lock organisations that have nothing yet, and return the batch for their histories.

    Args:
        connection: To Postgres, in a transaction that `feeds.database.begin` has begun.
        ledger: The facts of the ledger.
        org_ids: The organisations.

    Raises:
        HistoriesRefused: An organisation has movements or grants.
    """
    batch = Batch(connection, ledger, Posted(org_ids=set(org_ids)))
    lock_organisations(batch, sorted(org_ids), [])
    found = [each for each in batch.organisations.values() if each.counts[EVERYTHING] or each.grant_count]
    if found:
        reason = HasMovements(
            "it has movements or grants already, and a history can only be its first. It may have been imported before"
        )
        raise HistoriesRefused({organisation.org_id: [RefusedLine(None, reason)] for organisation in found})
    return batch


def post_whole(batch: Batch, histories: Mapping[str, Sequence[Line]]) -> None:
    """Post histories that fit into memory together. They are all that is known: nothing more is read.

    Raises HistoriesRefused, with each of them that cannot be posted.
    """
    refused: dict[str, Sequence[RefusedLine]] = {}
    unwritten: list[str] = []
    waiting = 0
    with batch.connection.pipeline():
        for org_id, lines in histories.items():
            try:
                post_lines(batch, org_id, lines)
                settle_in_time(batch.organisations[org_id], batch.terms)
            except HistoriesRefused as error:
                refused.update(error.refused)  # the others are still looked at, but nothing more is written
            unwritten.append(org_id)
            waiting += len(lines)
            if waiting >= WRITTEN_AT_ONCE and not refused:
                write_movements(batch, unwritten)
                unwritten, waiting = [], 0
        if refused:
            raise HistoriesRefused(refused)
        write_movements(batch, unwritten)
        write_grants(batch)
        write_organisations(batch)


def post_large(batch: Batch, org_id: str, parts: Iterator[Sequence[Line]]) -> None:
    """Post the history of one organisation part by part, so that little of it is in memory at a time.

    Before each part the grants and usages that it names, and the grants that it may draw, are read back. Raises
    HistoriesRefused.
    """
    terms, connection = batch.terms, batch.connection
    connection.execute(SQL["lift_limit"])
    part = next(parts, None)
    while part:
        with connection.pipeline():
            for start in range(0, len(part), WRITTEN_AT_ONCE):
                post_lines(batch, org_id, part[start : start + WRITTEN_AT_ONCE])
                write_movements(batch, [org_id])
            write_grants(batch)
            part = next(parts, None)  # it is parsed while Postgres still writes
        batch.organisations[org_id] = forget(batch.organisations[org_id])
        batch.posted.movements[org_id] = []
        if part:
            batch.terms = replace(terms, now=part[-1].event.at)
            read_part(batch, org_id, part)
    batch.terms = terms
    read_named(batch, [])
    with connection.pipeline():
        settle_in_time(batch.organisations[org_id], terms)
        write_movements(batch, [org_id])
        write_grants(batch)
        write_organisations(batch)


def read_part(batch: Batch, org_id: str, part: Sequence[Line]) -> None:
    """Read what a part of a history needs: `batch.terms` is of its last event."""
    events = [line.event for line in part]
    read_named(batch, events)
    times = [event.occurred_at or event.at for event in events if isinstance(event, UsageEvent)]
    if times:
        read_drawable(batch, {org_id: Span(min(times), max(times))})


def post_lines(batch: Batch, org_id: str, lines: Sequence[Line]) -> None:
    """Post the next lines of an organisation, in memory. Raises HistoriesRefused."""
    organisation, (grace, numbers) = batch.organisations[org_id], (batch.terms.expiry_grace, batch.terms.usage_numbers)
    for number, event in lines:
        terms = Terms(event.at, grace, numbers)
        settle_in_time(organisation, terms)
        try:
            post(event, organisation, terms, event.at)
        except EventRefused as reason:
            raise HistoriesRefused({org_id: [RefusedLine(number, reason)]}) from reason
