"""Which movements does an event cause?

The rules of credits (worker/README.md), as functions of values: no clock, no database.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from heapq import heappop

from feeds.movement import USAGE_CAUSED, Kind, Movement
from feeds.page import EVERYTHING, feed_number, feed_numbers
from worker.events import Event, EventRefused, GrantEvent, RevokeEvent, UsageEvent, format_labels
from worker.ledger.grants import ALWAYS, CLOSED, GRANT_CONTENT, NEVER, PENDING, Grant, draw_order
from worker.ledger.hash_chain import next_hash
from worker.ledger.organisation import Organisation, Terms, drop_closed, learn, walk_drawable

FUTURE_TOLERANCE = timedelta(seconds=300)
TOTAL_MAX = 2**53 - 1
"""The largest whole number that every reader of JSON reads exactly."""

ALLOTS = feed_number(Kind.ALLOT, None) or 0
CONSUMES = feed_number(Kind.CONSUME, None) or 0
OVERFLOWS = feed_number(Kind.OVERFLOW, None) or 0

feeds_of = cache(feed_numbers)


class EventInFuture(EventRefused):
    """The event's time is more than 300 s ahead of Postgres's clock. Set the producer's clock, then replay it."""

    code = "occurred_in_future"


class EventConflict(EventRefused):
    """Two different events share a ref. Ask the producer which of them is right."""

    code = "conflict"


class GrantUnknown(EventRefused):
    """A revoke names a grant that was never posted. Replay the revoke once the grant has arrived."""

    code = "unknown_grant"


class TotalTooLarge(EventRefused):
    """The event would carry a sum of the organisation's credits past 2^53 - 1. Send it for another `org_id`."""

    code = "unpostable"

    def __init__(self) -> None:
        super().__init__(
            f"a sum of this organisation's credits would pass {TOTAL_MAX}, beyond which many JSON readers lose digits"
        )


def post(event: Event, organisation: Organisation, terms: Terms, added_at: datetime) -> None:
    """Add to the organisation what the event causes, after the starts and ends that have come.

    `added_at` is when the event was added to its stream. Raises EventRefused; the starts and ends are posted even then.
    """
    settle(organisation, terms)
    match event:
        case UsageEvent():
            post_usage(event, organisation, terms, added_at)
        case GrantEvent():
            post_grant(event, organisation, terms)
        case RevokeEvent():
            post_revoke(event, organisation, terms)


def settle(organisation: Organisation, terms: Terms) -> None:
    """Allot the grants that have started and expire those that have ended, in the order of time."""
    while organisation.changes and organisation.changes[0][0] <= terms.now:
        _, is_end, _, grant = heappop(organisation.changes)
        if is_end and grant.open:
            close(organisation, terms, grant, Kind.EXPIRE)
        elif not is_end and grant.state is PENDING:
            allot(organisation, terms, grant)


def settle_in_time(organisation: Organisation, terms: Terms) -> None:
    """Settle as a schedule does that is never late: each start and end is posted at its own time, up to now."""
    while organisation.changes and organisation.changes[0][0] <= terms.now:
        settle(organisation, replace(terms, now=organisation.changes[0][0]))


def post_usage(usage: UsageEvent, organisation: Organisation, terms: Terms, added_at: datetime) -> None:
    """Draw the credits from grants; what the grants cannot give overflows."""
    if usage.credits == 0:
        return
    known = organisation.usages.get(usage.usage_ref)
    if known:
        if known != (usage.usage_kind, usage.credits):
            raise EventConflict("another usage has this usage_ref, with other credits or another usage_kind")
        return
    occurred_at = time_of(usage, added_at, terms)
    if occurred_at - terms.now > FUTURE_TOLERANCE:
        raise EventInFuture(f"occurred_at is more than 300 s ahead of {terms.now.isoformat()}")
    draws, overflow = find_draws(usage.credits, organisation, occurred_at)
    require_exact_totals(usage, organisation, overflow)
    organisation.usages[usage.usage_ref] = (usage.usage_kind, usage.credits)
    labels = format_labels(usage.labels) if usage.labels else None
    if draws:
        drawn, consumed = draw(organisation, draws), usage.credits - overflow
        add_movement(organisation, terms, Kind.CONSUME, -consumed, usage.usage_ref, usage.usage_kind, drawn, labels)
    if overflow:
        add_movement(organisation, terms, Kind.OVERFLOW, -overflow, usage.usage_ref, usage.usage_kind, labels=labels)


def time_of(usage: UsageEvent, added_at: datetime, terms: Terms) -> datetime:
    """Return when a usage occurred: without a time of its own when it was added, but never later than now."""
    return usage.occurred_at or min(added_at, terms.now)


def find_draws(
    credits_wanted: int, organisation: Organisation, occurred_at: datetime
) -> tuple[list[tuple[Grant, int]], int]:
    """Find the active grants that were valid at `occurred_at`, in draw order, and how much each can give.

    Returns these, and the credits that no grant can give.
    """
    draws = []
    for grant in walk_drawable(organisation):
        if (grant.effective_at or ALWAYS) <= occurred_at < (grant.expires_at or NEVER):
            taken = min(credits_wanted, grant.remaining)
            draws.append((grant, taken))
            credits_wanted -= taken
            if not credits_wanted:
                break
    return draws, credits_wanted


def require_exact_totals(usage: UsageEvent, organisation: Organisation, overflow: int) -> None:
    """Raise TotalTooLarge if the usage would carry the sum of a feed's credits past `TOTAL_MAX`."""
    totals = organisation.totals
    if totals[CONSUMES] + totals[OVERFLOWS] - usage.credits >= -TOTAL_MAX:  # so is each of the two, and each usage kind
        return
    if max(usage.credits - overflow - totals[CONSUMES], overflow - totals[OVERFLOWS]) > TOTAL_MAX:
        raise TotalTooLarge


def draw(organisation: Organisation, draws: Sequence[tuple[Grant, int]]) -> tuple[tuple[int, int], ...]:
    """Take credits from grants, for the movement that is added next. Returns the draws with the grants' numbers."""
    position = organisation.counts[EVERYTHING] + 1
    for grant, taken in draws:
        grant.remaining -= taken
        grant.drawn += taken
        grant.first_draw_position = grant.first_draw_position or position
        grant.last_draw_position = position
        if not grant.remaining:
            grant.open, grant.close_position = False, position
        organisation.changed_grants[grant.grant_no] = grant
    if any(not grant.open for grant, _ in draws):
        drop_closed(organisation)
    return tuple([(grant.grant_no, taken) for grant, taken in draws])


def post_grant(event: GrantEvent, organisation: Organisation, terms: Terms) -> None:
    """Allot a new grant, or keep it pending until it starts."""
    known = organisation.grants.get(event.grant_ref)
    if known:
        if any(getattr(known, name) != getattr(event, name) for name in GRANT_CONTENT):
            raise EventConflict("another grant has this grant_ref, with other content")
        return
    # Grants that start later count too, because no event can be refused when they start.
    if organisation.totals[ALLOTS] + organisation.pending + event.credits > TOTAL_MAX:
        raise TotalTooLarge
    organisation.grant_count += 1
    organisation.pending += event.credits
    content = {name: getattr(event, name) for name in GRANT_CONTENT}
    labels = format_labels(event.labels) if event.labels else None
    grant = Grant(organisation.grant_count, event.grant_ref, **content, labels=labels)
    organisation.changed_grants[grant.grant_no] = grant
    learn(organisation, grant, terms)
    if (grant.effective_at or ALWAYS) <= terms.now:
        allot(organisation, terms, grant)


def post_revoke(revoke: RevokeEvent, organisation: Organisation, terms: Terms) -> None:
    """Revoke what remains of a grant. A closed grant stays as it is, but a used-up one keeps the first reason."""
    grant = organisation.grants.get(revoke.grant_ref)
    if grant is None:
        raise GrantUnknown("no grant with this grant_ref has been posted")
    if grant.state is not CLOSED:
        grant.revoke_reason = revoke.reason
        close(organisation, terms, grant, Kind.REVOKE)
    elif grant.drawn == grant.credits and grant.revoke_reason is None:
        # The grant is closed because it is used up, not because it ended: the reason is still worth keeping.
        grant.revoke_reason = revoke.reason
        organisation.changed_grants[grant.grant_no] = grant


def allot(organisation: Organisation, terms: Terms, grant: Grant) -> None:
    """Make a pending grant active, and add its allot movement."""
    organisation.pending -= grant.credits
    add_movement(organisation, terms, Kind.ALLOT, grant.credits, grant.grant_ref, labels=grant.labels)
    grant.allot_position = organisation.counts[EVERYTHING]
    grant.remaining = grant.credits
    organisation.changed_grants[grant.grant_no] = grant
    if organisation.draw_list is not None:
        insort(organisation.draw_list, grant, key=draw_order)


def close(organisation: Organisation, terms: Terms, grant: Grant, kind: Kind) -> None:
    """Close a grant for good, and add a movement of this kind (expire or revoke) if credits remained."""
    if grant.state is PENDING:
        organisation.pending -= grant.credits
    lapsed, grant.remaining, grant.open = grant.remaining, 0, False
    organisation.changed_grants[grant.grant_no] = grant
    drop_closed(organisation)
    if kind is Kind.EXPIRE:
        grant.expired = lapsed
    else:
        grant.revoked = lapsed
    if lapsed:
        add_movement(organisation, terms, kind, -lapsed, grant.grant_ref, labels=grant.labels)
        grant.close_position = organisation.counts[EVERYTHING]


def add_movement(  # noqa: PLR0913, PLR0917 -- the fields of a movement
    organisation: Organisation,
    terms: Terms,
    kind: Kind,
    signed_credits: int,
    usage_ref: str,
    usage_kind: str | None = None,
    draws: tuple[tuple[int, int], ...] = (),
    labels: str | None = None,
) -> None:
    """Add one movement, with its ordinal in each of its feeds, and its hash. `created_at` never goes back."""
    usage_number = terms.usage_numbers[usage_kind] if usage_kind is not None and kind in USAGE_CAUSED else None
    counts, totals, ordinals, narrowest = organisation.counts, organisation.totals, {}, EVERYTHING
    for narrowest in feeds_of(kind, usage_number):
        counts[narrowest] += 1
        totals[narrowest] += signed_credits
        ordinals[narrowest] = counts[narrowest]
    created_at = organisation.last_created_at = max(organisation.last_created_at, terms.now)
    balance = totals[EVERYTHING] - totals[OVERFLOWS]
    facts = (
        kind,
        signed_credits,
        usage_kind,
        usage_ref,
        created_at,
        ordinals,
        balance,
        totals[narrowest],
        draws,
        labels,
    )
    organisation.last_hash = next_hash(organisation.last_hash, Movement(*facts))
    organisation.movements.append(Movement(*facts, organisation.last_hash))
