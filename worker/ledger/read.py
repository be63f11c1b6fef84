"""What does a batch lock and read before its events are posted?"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from psycopg import Connection

from feeds.page import count_feeds
from feeds.queries import load_queries
from worker.events import Event, GrantEvent, RevokeEvent, UsageEvent
from worker.ledger.arrays import format_array, format_columns
from worker.ledger.batch import Batch
from worker.ledger.entries import Entry
from worker.ledger.grants import Grant
from worker.ledger.hash_chain import initial_hash
from worker.ledger.organisation import Organisation, Terms, learn, learn_drawable
from worker.ledger.posting import time_of

SQL = load_queries(__file__)

READ_AT_ONCE = 100
"""How many of an organisation's active grants are read at once. More are read only if a usage gets that far."""


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
    for org_id, org_no, counts, totals, last_hash, *others in locked:
        new = [0] * (feeds - len(counts))  # usage kinds may have been added since
        batch.org_nos[org_id] = org_no
        batch.organisations[org_id] = Organisation(
            org_id, counts + new, totals + new, last_hash or initial_hash(org_id), *others
        )
    [(before,)], [(now,)] = clock_before.fetchall(), clock.fetchall()
    batch.posted.locking = now - before
    batch.terms = Terms(now, timedelta(seconds=batch.ledger.expiry_grace_s), batch.ledger.usage_numbers)


def read_now(connection: Connection[Any]) -> datetime:
    """Return the time of Postgres's clock."""
    [(now,)] = connection.execute(SQL["read_clock"]).fetchall()
    return now  # type: ignore[no-any-return]


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
    by_no = {org_nos[org_id]: organisation for org_id, organisation in batch.organisations.items()}
    for org_no, *grant in found_grants:
        learn(by_no[org_no], Grant(*grant), terms)
    usage_kinds = batch.ledger.usage_kinds
    for org_no, usage_ref, usage_number, credits_used in found_usages:
        by_no[org_no].usages[usage_ref] = (usage_kinds[usage_number], credits_used)


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
