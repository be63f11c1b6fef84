"""How is a batch of entries posted, once and whole?"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from psycopg import Connection
from uuid_utils import uuid7

from feeds.movement import Movement
from feeds.page import count_feeds
from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import Event, EventRefused, GrantEvent, RevokeEvent, UsageEvent, parse_event
from worker.ledger.arrays import (
    HashedMovement,
    format_array,
    format_columns,
    format_grants,
    format_movements,
    format_organisations,
)
from worker.ledger.dead_letters import bury
from worker.ledger.entries import Entry, Refusal
from worker.ledger.faults import PostingFails, describe, make_trial, may_be_an_events
from worker.ledger.grants import Grant
from worker.ledger.hash_chain import initial_hash, next_hash
from worker.ledger.posting import Organisation, Terms, learn, learn_drawable, may_reach_total, post, time_of

SQL = load_queries(__file__)

READ_AT_ONCE = 100
"""How many of an organisation's active grants are read at once. More are read only if a usage gets that far."""
WRITTEN_AT_ONCE = 250
"""After how many events their movements are sent: Postgres writes them while Python posts the next events."""


@dataclass(slots=True)
class Posted:
    """The result of a batch.

    `movements` are the new ones, by organisation; `org_ids` the organisations that the batch names; `refusals` what
    was buried. `types` counts the accepted events by type, repeats included. `splits` counts how often the batch was
    halved to find an event that cannot be posted. `locking` is how long Postgres took to find and lock the
    organisations.
    """

    movements: dict[str, list[Movement]] = field(default_factory=dict)
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


def lock_organisations(batch: Batch, org_ids: Sequence[str], entries: Sequence[Entry]) -> None:
    """Insert the organisations that are new, lock and read all, and find which of the entries were buried before.

    The clock is read once the locks are granted.
    """
    sources = {
        "streams": format_array(entry.stream for entry in entries),
        "entry_ids": format_array(entry.entry_id for entry in entries),
    }
    connection = batch.connection
    with connection.pipeline():
        connection.execute(SQL["bound_work"])
        found = connection.execute(SQL["find_buried"], sources)
        connection.execute(SQL["insert_organisations"], {"org_ids": format_array(org_ids)})
        clock_before = connection.execute(SQL["read_clock"])
        locked = connection.execute(SQL["lock_organisations"], {"org_ids": format_array(org_ids)})
        clock = connection.execute(SQL["read_clock"])
    for stream, entry_id, digest in found:
        batch.buried[stream, entry_id].add(digest)
    feeds = count_feeds(batch.ledger.usage_kinds)
    for org_id, org_no, known_counts, grant_count, last_created_at, last_hash in locked:
        counts = known_counts + [0] * (feeds - len(known_counts))  # usage kinds may have been added since
        batch.org_nos[org_id] = org_no
        batch.organisations[org_id] = Organisation(org_id, counts, grant_count, last_created_at, last_hash)
    [(before,)], [(now,)] = clock_before.fetchall(), clock.fetchall()
    batch.posted.locking = now - before
    batch.terms = Terms(now, timedelta(seconds=batch.ledger.expiry_grace_s), batch.ledger.usage_numbers, uuid7)


def read_named(batch: Batch, events: Sequence[Event]) -> None:
    """Read into the locked organisations the grants and usages that the events name, and the grants that are due.

    These statements run after the locks are held, so under READ COMMITTED they see what others have committed.
    """
    org_nos, terms = batch.org_nos, batch.terms
    # Each ref once: a usage is the sum of its movements, and a ref that is named twice would be summed twice.
    usages = dict.fromkeys(
        (org_nos[event.org_id], event.usage_ref) for event in events if isinstance(event, UsageEvent)
    )
    grants = dict.fromkeys(
        (org_nos[event.org_id], event.grant_ref) for event in events if isinstance(event, GrantEvent | RevokeEvent)
    )
    new_grants = Counter(event.org_id for event in events if isinstance(event, GrantEvent))
    summed = [
        org_nos[org_id] for org_id, new in new_grants.items() if may_reach_total(batch.organisations[org_id], new)
    ]
    parameters = {
        "org_nos": format_array(org_nos.values()),
        "now": terms.now,
        "ended_at": terms.now - terms.expiry_grace,
        **format_columns(grants, "ref_org_nos", "grant_refs"),
    }
    connection = batch.connection
    with connection.pipeline():
        found_grants = connection.execute(SQL["read_grants"], parameters)
        found_usages = connection.execute(SQL["read_usages"], format_columns(usages, "ref_org_nos", "usage_refs"))
        sums = connection.execute(SQL["sum_grants"], {"org_nos": format_array(summed)}) if summed else ()
    by_no = {org_nos[org_id]: organisation for org_id, organisation in batch.organisations.items()}
    for org_no, *grant in found_grants:
        learn(by_no[org_no], Grant(*grant), terms)
    usage_kinds = batch.ledger.usage_kinds
    for org_no, usage_ref, usage_number, credits_used in found_usages:
        by_no[org_no].usages[usage_ref] = (usage_kinds[usage_number], credits_used)
    for org_no, promised in sums:
        by_no[org_no].promised = int(promised)


class Span(NamedTuple):
    """The times of the first and of the last usage of an organisation in a batch."""

    first: datetime
    last: datetime


def list_usage_spans(batch: Batch, events: Sequence[tuple[Entry, Event]]) -> dict[str, Span]:
    """Return the span of time in which each organisation's usages of the batch occurred."""
    spans: dict[str, Span] = {}
    for entry, event in events:
        if isinstance(event, UsageEvent):
            occurred_at = time_of(event, entry.added_at, batch.terms)
            known = spans.get(event.org_id)
            if known is None:
                spans[event.org_id] = Span(occurred_at, occurred_at)
            elif not known.first <= occurred_at <= known.last:
                spans[event.org_id] = Span(min(known.first, occurred_at), max(known.last, occurred_at))
    return spans


def read_drawable(batch: Batch, spans: Mapping[str, Span], after: int | None = None) -> None:
    """Read the next active grants in draw order of these organisations, at most `READ_AT_ONCE` of each.

    A grant that was valid at no time of the organisation's span is passed over: no usage of the batch can draw it.
    `after` is the number of the grant that was read last, None to begin. The first call is sent outside of any
    pipeline: after the flush of a pipeline Postgres takes the session for busy, and the limit on idle transactions does
    not apply.
    """
    rows = [(batch.org_nos[org_id], after, *span) for org_id, span in spans.items()]
    columns = format_columns(rows, "org_nos", "after", "first_usage_at", "last_usage_at")
    found: dict[int, list[Grant]] = defaultdict(list)
    for org_no, *grant in batch.connection.execute(SQL["read_drawable"], columns | {"most": READ_AT_ONCE}).fetchall():
        found[org_no].append(Grant(*grant))
    for org_id, span in spans.items():
        grants, organisation = found[batch.org_nos[org_id]], batch.organisations[org_id]
        learn_drawable(organisation, grants, batch.terms, all_known=len(grants) < READ_AT_ONCE)
        if len(grants) == READ_AT_ONCE:
            organisation.read_more = partial(read_drawable, batch, {org_id: span}, grants[-1].grant_no)


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
    hashed: list[HashedMovement] = []
    for org_id in org_ids:
        organisation = batch.organisations[org_id]
        if organisation.movements:
            hashed += hash_movements(batch.org_nos[org_id], organisation)
            batch.posted.movements.setdefault(org_id, []).extend(organisation.movements)
            organisation.movements.clear()
    if hashed:
        batch.connection.execute(SQL["insert_movements"], format_movements(hashed, batch.ledger.usage_numbers))


def hash_movements(org_no: int, organisation: Organisation) -> Iterator[HashedMovement]:
    """Yield the organisation's new movements with their hashes, each of which includes the one before it."""
    last_hash = organisation.last_hash or initial_hash(organisation.org_id)
    for movement in organisation.movements:
        last_hash = next_hash(last_hash, movement)
        yield HashedMovement(org_no, movement, last_hash)
    organisation.last_hash = last_hash


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
    if changed:
        batch.connection.execute(SQL["write_organisations"], format_organisations(batch.org_nos, changed))
