"""How is a batch of entries posted, once and whole?"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import Connection
from uuid_utils import uuid7

from feeds.movement import Movement
from feeds.page import count_feeds
from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import (
    EVENT_BYTES,
    Event,
    EventRefused,
    EventTooLarge,
    GrantEvent,
    RevokeEvent,
    UsageEvent,
    parse_event,
)
from worker.ledger.arrays import (
    as_arrays,
    format_array,
    format_columns,
    format_grants,
    format_movement,
    format_organisations,
)
from worker.ledger.dead_letters import bury
from worker.ledger.entries import Entry, Refusal
from worker.ledger.hash_chain import chain, start_chain
from worker.ledger.posting import Grant, Organisation, Terms, post

SQL = load_queries(__file__)

WRITTEN_AT_ONCE = 250
"""How many events are posted before their lines are sent: Postgres writes them while the next are posted here."""
NOT_THE_EVENTS_FAULT = frozenset({"08", "25", "28", "3D", "40", "42", "53", "55", "57", "58"})
"""Classes of SQLSTATE that speak of the server, the connection or our set-up: retried, never buried."""

Buried = Mapping[tuple[str, str], set[bytes]]
"""The digests that lie buried, by stream and entry id."""


@dataclass(slots=True)
class Posted:
    """What a batch came to: new movements by organisation, the organisations it named, what was buried.

    `types` counts the events that were posted. `splits`: how often the batch was halved, in search of an event that
    the database refuses.
    """

    movements: dict[str, list[Movement]] = field(default_factory=dict)
    org_ids: set[str] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    splits: int = 0

    def merge(self, other: "Posted") -> "Posted":
        """Return both halves of a batch, this one first."""
        movements = defaultdict(list, self.movements)
        for org_id, lines in other.movements.items():
            movements[org_id] = movements[org_id] + lines
        return Posted(
            dict(movements),
            self.org_ids | other.org_ids,
            self.refusals + other.refusals,
            self.types + other.types,
            self.splits + other.splits + 1,
        )


def post_entries(
    connection: Connection[Any], ledger: Ledger, entries: Sequence[Entry], *, again: bool = False
) -> Posted:
    """Post entries in their order, in the caller's transaction; bury what cannot be posted.

    What the database refuses is found by halving. An entry that was buried before is passed over,
    unless it is to be tried `again`. Raises psycopg.Error where the server is at fault, not an event.
    """
    try:
        with connection.transaction():
            return post_batch(connection, ledger, entries, again=again)
    except psycopg.Error as error:
        if is_transient(error):
            raise
        if len(entries) == 1:
            return give_up(connection, entries[0], error)
    middle = len(entries) // 2
    first = post_entries(connection, ledger, entries[:middle], again=again)
    return first.merge(post_entries(connection, ledger, entries[middle:], again=again))


def is_transient(error: psycopg.Error) -> bool:
    """Tell whether trying the same batch again can help."""
    if error.sqlstate:
        return error.sqlstate[:2] in NOT_THE_EVENTS_FAULT
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def give_up(connection: Connection[Any], entry: Entry, error: psycopg.Error) -> Posted:
    """Bury the one entry that the database will not have."""
    code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    reason = EventRefused(f"the database refused it{code}: {error.diag.message_primary or type(error).__name__}")
    with connection.transaction():
        bury(connection, [Refusal(entry, reason)])
    return Posted(refusals=[Refusal(entry, reason)])


def post_batch(connection: Connection[Any], ledger: Ledger, entries: Sequence[Entry], *, again: bool) -> Posted:
    """Lock the organisations, read what the rules need, post, and write the outcome."""
    events, refusals = parse_entries(entries, ledger)
    org_ids = sorted({event.org_id for _, event in events})
    buried, org_nos, organisations = lock(connection, ledger, org_ids, [] if again else entries)
    terms = read(connection, ledger, org_nos, organisations, [event for _, event in events])
    posted = Posted({}, set(org_ids), refusals)
    with connection.pipeline():
        for start in range(0, len(events), WRITTEN_AT_ONCE):
            part = events[start : start + WRITTEN_AT_ONCE]
            post_events(part, buried, organisations, terms, posted)
            named = [organisations[org_id] for org_id in dict.fromkeys(event.org_id for _, event in part)]
            write_lines(connection, ledger, org_nos, named, posted)
        write_states(connection, org_nos, organisations, posted)
        if posted.refusals:
            bury(connection, posted.refusals)
    return posted


def post_events(
    events: Sequence[tuple[Entry, Event]],
    buried: Buried,
    organisations: Mapping[str, Organisation],
    terms: Terms,
    posted: Posted,
) -> None:
    """Post events to their organisations, and note what came of each."""
    for entry, event in events:
        if (entry.stream, entry.entry_id) in buried and entry.digest in buried[entry.stream, entry.entry_id]:
            continue
        try:
            post(event, organisations[event.org_id], terms, entry.added_at)
        except EventRefused as reason:
            posted.refusals.append(Refusal(entry, reason))
        else:
            posted.types[event.type] += 1


def parse_entries(entries: Sequence[Entry], ledger: Ledger) -> tuple[list[tuple[Entry, Event]], list[Refusal]]:
    """Return the events that the entries hold, and the entries that hold none."""
    events, refusals = [], []
    for entry in entries:
        try:
            if entry.size > EVENT_BYTES:  # `raw` may be cut, so its own length says less
                raise EventTooLarge(f"an event has at most {EVENT_BYTES} bytes, this one has {entry.size}")
            events.append((entry, parse_event(entry.raw, ledger.usage_numbers)))
        except EventRefused as reason:
            refusals.append(Refusal(entry, reason))
    return events, refusals


def lock(
    connection: Connection[Any], ledger: Ledger, org_ids: Sequence[str], entries: Sequence[Entry]
) -> tuple[Buried, dict[str, int], dict[str, Organisation]]:
    """Lock the organisations' rows, making those that are new.

    Returns which entries were buried before, the organisations' numbers, and their state so far.
    """
    sources = {
        "streams": format_array(entry.stream for entry in entries),
        "entry_ids": format_array(entry.entry_id for entry in entries),
    }
    with connection.pipeline():
        connection.execute(SQL["bound_work"])
        found = connection.execute(SQL["find_buried"], sources)
        connection.execute(SQL["insert_organisations"], {"org_ids": format_array(org_ids)})
        locked = connection.execute(SQL["lock_organisations"], {"org_ids": format_array(org_ids)})
    buried = defaultdict(set)
    for stream, entry_id, digest in found:
        buried[stream, entry_id].add(digest)
    feeds = count_feeds(tuple(ledger.usage_numbers))
    org_nos, organisations = {}, {}
    for org_id, org_no, known_counts, *state in locked:
        org_nos[org_id] = org_no
        counts = known_counts + [0] * (feeds - len(known_counts))  # usage kinds may have been added since
        organisations[org_id] = Organisation(org_id, counts, *state)
    return buried, org_nos, organisations


def read(
    connection: Connection[Any],
    ledger: Ledger,
    org_nos: Mapping[str, int],
    organisations: Mapping[str, Organisation],
    events: Sequence[Event],
) -> Terms:
    """Read into the locked organisations what the events need, and return the terms.

    These are later statements than the one that waited for the locks: each sees what was committed meanwhile.
    """
    # Each ref once: a usage is the sum of its lines, and a ref named twice would be summed twice.
    usages = dict.fromkeys(
        (org_nos[event.org_id], event.usage_ref) for event in events if isinstance(event, UsageEvent)
    )
    grants = dict.fromkeys(
        (org_nos[event.org_id], event.grant_ref) for event in events if isinstance(event, GrantEvent | RevokeEvent)
    )
    with connection.pipeline():
        found_grants = connection.execute(
            SQL["read_grants"],
            {"org_nos": format_array(org_nos.values()), **format_columns(grants, "ref_org_nos", "grant_refs")},
        )
        found_usages = connection.execute(SQL["read_usages"], format_columns(usages, "ref_org_nos", "usage_refs"))
    [(now,)] = connection.execute(SQL["read_clock"]).fetchall()
    by_no = {org_nos[org_id]: organisation for org_id, organisation in organisations.items()}
    for org_no, *grant in found_grants:
        by_no[org_no].grants[grant[1]] = Grant(*grant)
    kinds = tuple(ledger.usage_numbers)
    for org_no, usage_ref, usage_number, total in found_usages:
        by_no[org_no].usages[usage_ref] = (kinds[usage_number], total)
    return Terms(now, timedelta(seconds=ledger.expiry_grace_s), ledger.usage_numbers, uuid7)


def write_lines(
    connection: Connection[Any],
    ledger: Ledger,
    org_nos: Mapping[str, int],
    organisations: Iterable[Organisation],
    posted: Posted,
) -> None:
    """Send the lines that organisations have gained, and hand them over to what was posted."""
    lines: list[tuple[str, ...]] = []
    for organisation in organisations:
        if organisation.movements:
            lines += chain_lines(org_nos[organisation.org_id], organisation, ledger)
            posted.movements.setdefault(organisation.org_id, []).extend(organisation.movements)
            organisation.movements.clear()
    if lines:
        connection.execute(SQL["insert_movements"], as_arrays(lines))


def chain_lines(org_no: int, organisation: Organisation, ledger: Ledger) -> Iterator[tuple[str, ...]]:
    """Chain the organisation's new lines to those before them, and yield each as elements of arrays."""
    last_hash = organisation.last_hash or start_chain(organisation.org_id)
    for movement in organisation.movements:
        last_hash = chain(last_hash, movement)
        yield format_movement(org_no, movement, ledger, last_hash)
    organisation.last_hash = last_hash


def write_states(
    connection: Connection[Any],
    org_nos: Mapping[str, int],
    organisations: Mapping[str, Organisation],
    posted: Posted,
) -> None:
    """Send the grants that changed, and the counts of organisations that did."""
    grants = [
        (org_nos[organisation.org_id], grant)
        for organisation in organisations.values()
        for grant in organisation.changed_grants.values()
    ]
    if grants:
        connection.execute(SQL["write_grants"], format_grants(grants))
    changed = [
        organisation
        for organisation in organisations.values()
        if organisation.org_id in posted.movements or organisation.changed_grants
    ]
    if changed:
        connection.execute(SQL["write_organisations"], format_organisations(org_nos, changed))
