"""Which movements does an event cause?

The rules of credits (worker/README.md), as functions of values: no clock, no database.
"""

from bisect import insort
from datetime import datetime, timedelta
from functools import cache
from heapq import heappop

from feeds.movement import USAGE_CAUSED, Kind, Movement
from feeds.page import EVERYTHING, feed_numbers
from worker.events import CREDITS_MAX, Event, EventRefused, GrantEvent, RevokeEvent, UsageEvent
from worker.ledger.grants import ALWAYS, CLOSED, GRANT_CONTENT, NEVER, PENDING, Grant, draw_order
from worker.ledger.organisation import Organisation, Terms, drop_closed, learn, walk_drawable

FUTURE_TOLERANCE = timedelta(seconds=300)
TOTAL_MAX = 2**53 - 1
"""The largest whole number that every reader of JSON reads exactly."""

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
    """A grant would carry the organisation's granted credits past 2^53 - 1. Replay it once credits were used."""

    code = "unpostable"


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
    organisation.usages[usage.usage_ref] = (usage.usage_kind, usage.credits)
    draws, overflow = draw(usage.credits, organisation, occurred_at)
    if draws:
        consumed, drawn = usage.credits - overflow, tuple(draws)
        organisation.promised -= consumed
        add_movement(organisation, terms, Kind.CONSUME, -consumed, usage.usage_ref, usage.usage_kind, drawn)
    if overflow:
        add_movement(organisation, terms, Kind.OVERFLOW, -overflow, usage.usage_ref, usage.usage_kind)


def time_of(usage: UsageEvent, added_at: datetime, terms: Terms) -> datetime:
    """Return when a usage occurred: without a time of its own when it was added, but never later than now."""
    return usage.occurred_at or min(added_at, terms.now)


def draw(credits_wanted: int, organisation: Organisation, occurred_at: datetime) -> tuple[list[tuple[int, int]], int]:
    """Take credits from the active grants that were valid at `occurred_at`, in draw order.

    Returns what each grant (by number) gives, and the credits that no grant could give.
    """
    draws = []
    used_up = False
    for grant in walk_drawable(organisation):
        if (grant.effective_at or ALWAYS) <= occurred_at < (grant.expires_at or NEVER):
            taken = min(credits_wanted, grant.remaining)
            grant.remaining -= taken
            grant.drawn += taken
            if not grant.remaining:
                grant.open, used_up = False, True
            organisation.changed_grants[grant.grant_no] = grant
            draws.append((grant.grant_no, taken))
            credits_wanted -= taken
            if not credits_wanted:
                break
    if used_up:
        drop_closed(organisation)
    return draws, credits_wanted


def post_grant(event: GrantEvent, organisation: Organisation, terms: Terms) -> None:
    """Allot a new grant, or keep it pending until it starts."""
    known = organisation.grants.get(event.grant_ref)
    if known:
        if any(getattr(known, name) != getattr(event, name) for name in GRANT_CONTENT):
            raise EventConflict("another grant has this grant_ref, with other content")
        return
    require_exact_total(organisation, event.credits)
    organisation.grant_count += 1
    organisation.promised += event.credits
    content = {name: getattr(event, name) for name in GRANT_CONTENT}
    grant = Grant(organisation.grant_count, event.grant_ref, **content)
    organisation.changed_grants[grant.grant_no] = grant
    learn(organisation, grant, terms)
    if (grant.effective_at or ALWAYS) <= terms.now:
        allot(organisation, terms, grant)


def require_exact_total(organisation: Organisation, credits_given: int) -> None:
    """Raise TotalTooLarge if the organisation's balance could not be exact with a new grant of these credits.

    Grants that start later count too, because no event can be refused when they start.
    """
    if may_reach_total(organisation, 1) and organisation.promised + credits_given > TOTAL_MAX:
        raise TotalTooLarge(
            f"the open grants would hold more than {TOTAL_MAX} credits; many JSON readers lose digits above that"
        )


def may_reach_total(organisation: Organisation, new_grants: int) -> bool:
    """Tell whether the organisation has, with the new ones, so many grants that their sum can pass `TOTAL_MAX`."""
    return (organisation.grant_count + new_grants) * CREDITS_MAX > TOTAL_MAX


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
    """Make a grant active, and add its allot movement."""
    add_movement(organisation, terms, Kind.ALLOT, grant.credits, grant.grant_ref)
    grant.allot_position = organisation.counts[EVERYTHING]
    grant.remaining = grant.credits
    organisation.changed_grants[grant.grant_no] = grant
    if organisation.draw_list is not None:
        insort(organisation.draw_list, grant, key=draw_order)


def close(organisation: Organisation, terms: Terms, grant: Grant, kind: Kind) -> None:
    """Close a grant for good, and add a movement of this kind (expire or revoke) if credits remained."""
    organisation.promised -= grant.credits if grant.state is PENDING else grant.remaining
    lapsed, grant.remaining, grant.open = grant.remaining, 0, False
    organisation.changed_grants[grant.grant_no] = grant
    drop_closed(organisation)
    if kind is Kind.EXPIRE:
        grant.expired = lapsed
    else:
        grant.revoked = lapsed
    if lapsed:
        add_movement(organisation, terms, kind, -lapsed, grant.grant_ref)


def add_movement(  # noqa: PLR0913, PLR0917 -- the fields of a movement
    organisation: Organisation,
    terms: Terms,
    kind: Kind,
    signed_credits: int,
    usage_ref: str,
    usage_kind: str | None = None,
    draws: tuple[tuple[int, int], ...] = (),
) -> None:
    """Add one movement, with its ordinal in each of its feeds. `created_at` never goes back."""
    usage_number = terms.usage_numbers[usage_kind] if usage_kind is not None and kind in USAGE_CAUSED else None
    ordinals = {}
    for number in feeds_of(kind, usage_number):
        organisation.counts[number] += 1
        ordinals[number] = organisation.counts[number]
    created_at = organisation.last_created_at = max(organisation.last_created_at, terms.now)
    movement = Movement(terms.new_id(), kind, signed_credits, usage_kind, usage_ref, created_at, ordinals, draws)
    organisation.movements.append(movement)
