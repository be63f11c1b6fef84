"""How is a batch of entries posted, once and whole?"""

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection

from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import Event, EventRefused, parse_event
from worker.ledger.arrays import (
    PlacedMovement,
    format_grants,
    format_labels,
    format_movements,
    format_organisations,
)
from worker.ledger.batch import Batch, Posted
from worker.ledger.dead_letters import bury
from worker.ledger.entries import Entry, Refusal
from worker.ledger.faults import PostingFails, describe, make_trial, may_be_an_events
from worker.ledger.posting import post
from worker.ledger.read import list_usage_spans, lock_organisations, read_drawable, read_named

SQL = load_queries(__file__)

WRITTEN_AT_ONCE = 250
"""After how many events their movements are sent: Postgres writes them while Python posts the next events."""


def post_entries(
    connection: Connection[Any], ledger: Ledger, entries: Sequence[Entry], *, again: bool = False
) -> Posted:
    """Post entries in their order, in the caller's transaction, and bury those that cannot be posted.

    An event that cannot be posted is found by halving the batch.

    Args:
        connection: To Postgres, in a transaction that `feeds.database.begin` has begun.
        ledger: The facts of the ledger.
        entries: The batch.
        again: Post entries that are dead letters already; without it events that were buried before are passed over.

    Raises:
        Exception: The surroundings are at fault, not an event. Roll the transaction back, and try again later.
    """
    error = try_batch(connection, ledger, entries, again=again)
    if isinstance(error, Posted):
        return error
    if isinstance(trial := try_batch(connection, ledger, make_trial(ledger), keep=False), Exception):
        raise PostingFails(trial) from error
    return post_halves(connection, ledger, entries, error, again=again)


def try_batch(
    connection: Connection[Any], ledger: Ledger, entries: Sequence[Entry], *, again: bool = False, keep: bool = True
) -> Posted | Exception:
    """Post entries, all or none. Returns an error that an event may have caused; raises all others.

    `keep=False` undoes what was posted.
    """
    try:
        with connection.transaction(force_rollback=not keep):
            return post_batch(connection, ledger, entries, again=again)
    except Exception as error:
        if not may_be_an_events(error):
            raise
        return error


def post_halves(
    connection: Connection[Any], ledger: Ledger, entries: Sequence[Entry], error: Exception, *, again: bool
) -> Posted:
    """Post each half of a batch that failed with an error. Buries an entry that is left."""
    if len(entries) == 1:
        return bury_unpostable(connection, entries[0], error)
    middle = len(entries) // 2
    halves = []
    for half in (entries[:middle], entries[middle:]):
        posted = try_batch(connection, ledger, half, again=again)
        if not isinstance(posted, Posted):
            posted = post_halves(connection, ledger, half, posted, again=again)
        halves.append(posted)
    return halves[0].merge(halves[1])


def bury_unpostable(connection: Connection[Any], entry: Entry, error: Exception) -> Posted:
    """Bury the one entry that cannot be posted."""
    refusal = Refusal(entry, EventRefused(f"posting it failed: {describe(error)}"))
    with connection.transaction():
        bury(connection, [refusal])
    return Posted(refusals=[refusal])


def post_batch(connection: Connection[Any], ledger: Ledger, entries: Sequence[Entry], *, again: bool) -> Posted:
    """Lock the organisations, read what the rules need, post the events, and write the result."""
    events, refusals = parse_events(entries, ledger)
    org_ids = sorted({event.org_id for _, event in events})
    batch = Batch(connection, ledger, Posted(org_ids=set(org_ids), refusals=refusals))
    lock_organisations(batch, org_ids, [] if again else entries)
    read_named(batch, [event for _, event in events])
    read_drawable(batch, list_usage_spans(batch, events))
    with connection.pipeline():
        for start in range(0, len(events), WRITTEN_AT_ONCE):
            part = events[start : start + WRITTEN_AT_ONCE]
            post_events(batch, part)
            write_movements(batch, dict.fromkeys(event.org_id for _, event in part))
        write_grants(batch)
        write_organisations(batch)
        if batch.posted.refusals:
            bury(connection, batch.posted.refusals)
    return batch.posted


def parse_events(entries: Sequence[Entry], ledger: Ledger) -> tuple[list[tuple[Entry, Event]], list[Refusal]]:
    """Return the entries that hold an event, each with its event, and refusals of the others."""
    events, refusals = [], []
    for entry in entries:
        try:
            events.append((entry, parse_event(entry.raw, ledger.usage_numbers, entry.uncut_size)))
        except EventRefused as reason:
            refusals.append(Refusal(entry, reason))
    return events, refusals


def post_events(batch: Batch, events: Sequence[tuple[Entry, Event]]) -> None:
    """Post events to their organisations; note which were posted and which were refused."""
    buried, organisations, terms, posted = batch.buried, batch.organisations, batch.terms, batch.posted
    for entry, event in events:
        if (entry.stream, entry.entry_id) in buried and entry.digest in buried[entry.stream, entry.entry_id]:
            continue
        try:
            post(event, organisations[event.org_id], terms, entry.added_at)
        except EventRefused as reason:
            posted.refusals.append(Refusal(entry, reason))
        else:
            posted.types[event.type] += 1


def write_movements(batch: Batch, org_ids: Iterable[str]) -> None:
    """Send the new movements of organisations to Postgres, and move them to the result."""
    placed: list[PlacedMovement] = []
    for org_id in org_ids:
        organisation = batch.organisations[org_id]
        if organisation.movements:
            org_no = batch.org_nos[org_id]
            placed += [PlacedMovement(org_no, movement) for movement in organisation.movements]
            batch.posted.movements.setdefault(org_id, []).extend(organisation.movements)
            organisation.movements.clear()
    if placed:
        batch.connection.execute(SQL["insert_movements"], format_movements(placed, batch.ledger.usage_numbers))
    if labelled := [each for each in placed if each.movement.labels]:
        batch.connection.execute(SQL["insert_labels"], format_labels(labelled))


def write_grants(batch: Batch) -> None:
    """Send the grants that are new or have changed to Postgres."""
    grants = [
        (batch.org_nos[organisation.org_id], grant)
        for organisation in batch.organisations.values()
        for grant in organisation.changed_grants.values()
    ]
    if grants:
        batch.connection.execute(SQL["write_grants"], format_grants(grants))


def write_organisations(batch: Batch) -> None:
    """Send the organisations that have changed to Postgres."""
    changed = [
        organisation
        for organisation in batch.organisations.values()
        if organisation.org_id in batch.posted.movements or organisation.changed_grants
    ]
    for organisation in changed:
        organisation.revision += 1
        batch.posted.revisions[organisation.org_id] = organisation.revision
    if changed:
        batch.connection.execute(SQL["write_organisations"], format_organisations(batch.org_nos, changed))
