"""Which movements does an event cause?

The rules of credits, section 3 of the contract, on values alone: no clock, no database.
"""

from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from feeds.movement import USAGE_CAUSED, AnyUUID, Kind, Movement
from feeds.page import feed_numbers
from worker.events import Event, EventRefused, GrantEvent, RevokeEvent, UsageEvent

FUTURE_TOLERANCE = timedelta(seconds=300)
NEVER = datetime.max.replace(tzinfo=UTC)
ALWAYS = datetime.min.replace(tzinfo=UTC)

feeds_of = cache(feed_numbers)


class EventInFuture(EventRefused):
    """The producer's clock runs ahead by more than 300 s. Mend it, then replay."""

    code = "occurred_in_future"


class EventConflict(EventRefused):
    """Two different events share a ref. Ask the producer which one is true."""

    code = "conflict"


class GrantUnknown(EventRefused):
    """A revoke of a grant never seen. Replay it once the grant has arrived."""

    code = "unknown_grant"


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every posting of a batch. `now` is Postgres's clock."""

    now: datetime
    expiry_grace: timedelta
    usage_numbers: Mapping[str, int]
    new_id: Callable[[], AnyUUID]


@dataclass(slots=True)
class Grant:
    """Credits given: pending without `allot_position`, drawable while open, empty once closed."""

    grant_no: int
    grant_ref: str
    credits: int
    source: str
    priority: int
    effective_at: datetime | None
    expires_at: datetime | None
    remaining: int = 0
    drawn: int = 0
    expired: int = 0
    revoked: int = 0
    allot_position: int | None = None
    open: bool = True
    revoke_reason: str | None = None


@dataclass(slots=True)
class Organisation:
    """An organisation's state under its row lock, and what this batch adds to it.

    `grants` holds the open ones and those that the batch names; `usages` maps a known usage ref to
    its kind and credits; `counts` are numbered by feed; `last_hash` is the newest line's. `movements`
    holds the new lines that are not written yet, `changed_grants` what this batch has changed.
    """

    org_id: str
    counts: list[int]
    grant_count: int = 0
    last_created_at: datetime = ALWAYS
    last_hash: bytes | None = None
    grants: dict[str, Grant] = field(default_factory=dict)
    usages: dict[str, tuple[str, int]] = field(default_factory=dict)
    movements: list[Movement] = field(default_factory=list)
    changed_grants: dict[int, Grant] = field(default_factory=dict)
    drawable: list[Grant] | None = None
    settled_at: datetime | None = None


def post(event: Event, organisation: Organisation, terms: Terms, added_at: datetime) -> None:
    """Add to the organisation what the event causes; what time alone causes comes first.

    `added_at` is when the event became ours. Raises EventRefused; what was settled stays.
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
    """Post the starts and ends that have come: by instant, allot before expire, then by arrival.

    Nothing can be due twice at one `now`, so a batch settles an organisation once, and again after
    a new grant.
    """
    if organisation.settled_at == terms.now:
        return
    organisation.settled_at = terms.now
    for _, ends, _, grant in sorted(due(organisation, terms), key=lambda instant: instant[:3]):
        if ends:
            close(organisation, terms, grant, Kind.EXPIRE)
        else:
            allot(organisation, terms, grant)


def due(organisation: Organisation, terms: Terms) -> list[tuple[datetime, bool, int, Grant]]:
    """Return the instants that have come: when, whether it is an end, the grant's arrival, the grant."""
    instants = []
    for grant in organisation.grants.values():
        if not grant.open:
            continue
        if grant.allot_position is None:
            if (grant.effective_at or ALWAYS) > terms.now:
                continue
            instants.append((grant.effective_at or ALWAYS, False, grant.grant_no, grant))
        if grant.expires_at and grant.expires_at <= terms.now - terms.expiry_grace:
            instants.append((grant.expires_at + terms.expiry_grace, True, grant.grant_no, grant))
    return instants


def post_usage(usage: UsageEvent, organisation: Organisation, terms: Terms, added_at: datetime) -> None:
    """Draw the credits from grants; what they cannot give overflows."""
    if usage.credits == 0:
        return
    known = organisation.usages.get(usage.usage_ref)
    if known:
        if known != (usage.usage_kind, usage.credits):
            raise EventConflict("another usage has this usage_ref, with other credits or another usage_kind")
        return
    occurred_at = usage.occurred_at or min(added_at, terms.now)
    if occurred_at - terms.now > FUTURE_TOLERANCE:
        raise EventInFuture(f"occurred_at is more than 300 s ahead of {terms.now.isoformat()}")
    organisation.usages[usage.usage_ref] = (usage.usage_kind, usage.credits)
    draws, overflow = draw(usage.credits, organisation, occurred_at)
    if draws:
        line = (usage.usage_ref, usage.usage_kind, tuple(draws))
        add(organisation, terms, Kind.CONSUME, overflow - usage.credits, *line)
    if overflow:
        add(organisation, terms, Kind.OVERFLOW, -overflow, usage.usage_ref, usage.usage_kind)


def draw(credits_wanted: int, organisation: Organisation, occurred_at: datetime) -> tuple[list[tuple[int, int]], int]:
    """Take credits from the grants that were drawable at `occurred_at`, in draw order.

    Returns what each grant (by number) gives, and the credits that none could give. The order is
    OpenMeter's, with our last tie-break.
    """
    draws = []
    for grant in drawable(organisation):
        if not credits_wanted:
            break
        if (grant.effective_at or ALWAYS) <= occurred_at < (grant.expires_at or NEVER):
            taken = min(credits_wanted, grant.remaining)
            grant.remaining -= taken
            grant.drawn += taken
            grant.open = grant.remaining > 0
            organisation.changed_grants[grant.grant_no] = grant
            draws.append((grant.grant_no, taken))
            credits_wanted -= taken
    if draws and any(not grant.open for grant in drawable(organisation)):
        organisation.drawable = None
    return draws, credits_wanted


def drawable(organisation: Organisation) -> list[Grant]:
    """Return the allotted, open grants in draw order; kept until one of them closes."""
    if organisation.drawable is None:
        allotted = [grant for grant in organisation.grants.values() if grant.open and grant.allot_position]
        organisation.drawable = sorted(allotted, key=draw_order)
    return organisation.drawable


def draw_order(grant: Grant) -> tuple[int, datetime, datetime, int]:
    """Lower priority first, then the sooner end (never last), the earlier start (none first), the earlier allot."""
    return grant.priority, grant.expires_at or NEVER, grant.effective_at or ALWAYS, grant.allot_position or 0


def post_grant(event: GrantEvent, organisation: Organisation, terms: Terms) -> None:
    """Allot the grant, or keep it pending until it starts."""
    known = organisation.grants.get(event.grant_ref)
    if known:
        if any(getattr(known, name) != getattr(event, name) for name in GRANT_CONTENT):
            raise EventConflict("another grant has this grant_ref, with other content")
        return
    organisation.grant_count += 1
    content = {name: getattr(event, name) for name in GRANT_CONTENT}
    grant = Grant(organisation.grant_count, event.grant_ref, **content)
    organisation.grants[grant.grant_ref] = grant
    organisation.changed_grants[grant.grant_no] = grant
    organisation.settled_at = None
    if (grant.effective_at or ALWAYS) <= terms.now:
        allot(organisation, terms, grant)


GRANT_CONTENT = ("credits", "source", "priority", "effective_at", "expires_at")


def post_revoke(revoke: RevokeEvent, organisation: Organisation, terms: Terms) -> None:
    """Claw back what remains of an open grant; a closed one has nothing to give."""
    grant = organisation.grants.get(revoke.grant_ref)
    if grant is None:
        raise GrantUnknown("no grant with this grant_ref has been posted")
    if grant.open:
        grant.revoke_reason = revoke.reason
        close(organisation, terms, grant, Kind.REVOKE)
    elif grant.drawn == grant.credits and grant.revoke_reason is None:
        # Used up and therefore closed by us, not by an end: the reason is still worth keeping.
        grant.revoke_reason = revoke.reason
        organisation.changed_grants[grant.grant_no] = grant


def allot(organisation: Organisation, terms: Terms, grant: Grant) -> None:
    """Make a grant drawable, with its line."""
    add(organisation, terms, Kind.ALLOT, grant.credits, grant.grant_ref)
    grant.allot_position = organisation.counts[0]
    grant.remaining = grant.credits
    organisation.changed_grants[grant.grant_no] = grant
    if organisation.drawable is not None:
        insort(organisation.drawable, grant, key=draw_order)


def close(organisation: Organisation, terms: Terms, grant: Grant, kind: Kind) -> None:
    """End a grant for good, with a line where something remained."""
    lapsed, grant.remaining, grant.open = grant.remaining, 0, False
    organisation.changed_grants[grant.grant_no] = grant
    organisation.drawable = None
    if kind is Kind.EXPIRE:
        grant.expired = lapsed
    else:
        grant.revoked = lapsed
    if lapsed:
        add(organisation, terms, kind, -lapsed, grant.grant_ref)


def add(  # noqa: PLR0913, PLR0917 -- the columns of a line
    organisation: Organisation,
    terms: Terms,
    kind: Kind,
    signed_credits: int,
    usage_ref: str,
    usage_kind: str | None = None,
    draws: tuple[tuple[int, int], ...] = (),
) -> None:
    """Write one line, with its place in each of its feeds; `created_at` never goes back."""
    usage_number = terms.usage_numbers[usage_kind] if usage_kind is not None and kind in USAGE_CAUSED else None
    ordinals = {}
    for number in feeds_of(kind, usage_number):
        organisation.counts[number] += 1
        ordinals[number] = organisation.counts[number]
    organisation.last_created_at = max(organisation.last_created_at, terms.now)
    organisation.movements.append(
        Movement(
            terms.new_id(),
            kind,
            signed_credits,
            usage_kind,
            usage_ref,
            organisation.last_created_at,
            ordinals,
            draws,
        )
    )
