"""The invariants of the ledger hold for every history of events."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from feeds.movement import Kind
from tests.histories import organisation, terms
from worker.events import EventRefused, GrantEvent, RevokeEvent, SettleEvent, UsageEvent
from worker.ledger.grants import State
from worker.ledger.posting import post

START = datetime(2026, 6, 1, tzinfo=UTC)
instants = st.integers(0, 100).map(lambda minutes: START + timedelta(minutes=minutes))
refs = st.sampled_from(["a", "b", "c", "d", "e"])
usages = st.builds(
    UsageEvent,
    org_id=st.just("org_a"),
    usage_ref=st.integers(0, 30).map(str),
    usage_kind=st.sampled_from(["ai_usage", "tm_usage"]),
    credits=st.integers(0, 20),
    occurred_at=st.none() | instants,
)
grants = st.builds(
    lambda ref, credits_given, priority, start, length: GrantEvent(
        org_id="org_a",
        grant_ref=ref,
        credits=credits_given,
        source="plan",
        priority=priority,
        effective_at=start,
        expires_at=None if length is None else (start or START) + timedelta(minutes=length),
    ),
    refs,
    st.integers(1, 30),
    st.integers(0, 3),
    st.none() | instants,
    st.none() | st.integers(1, 60),
)
revokes = st.builds(RevokeEvent, org_id=st.just("org_a"), grant_ref=refs)
settles = st.builds(SettleEvent, org_id=st.just("org_a"))
histories = st.lists(st.tuples(st.one_of(usages, usages, grants, revokes, settles), instants), max_size=40)


def run(history, grace_s=0):
    """Post a history; return the organisation, and the refused events with their codes."""
    state = organisation()
    refused = []
    for event, now in history:
        try:
            post(event, state, terms(now, grace_s), added_at=now)
        except EventRefused as error:
            refused.append((event, error.code))
    return state, refused


@given(histories, st.sampled_from([0, 600]))
def test_positions_and_ordinals_are_dense_and_times_never_go_back(history, grace_s):
    state, _ = run(history, grace_s)
    seen = [0] * len(state.counts)
    for movement in state.movements:
        for feed, ordinal in movement.ordinals.items():
            seen[feed] += 1
            assert ordinal == seen[feed]
    assert state.counts == seen
    assert all(earlier.created_at <= later.created_at for earlier, later in pairwise(state.movements))


@given(histories, st.sampled_from([0, 600]))
def test_balances_and_totals_are_running_sums_and_the_last_ones_are_the_organisations(history, grace_s):
    state, _ = run(history, grace_s)
    balance, totals = 0, [0] * len(state.totals)
    for movement in state.movements:
        balance += 0 if movement.kind is Kind.OVERFLOW else movement.credits
        for feed in movement.ordinals:
            totals[feed] += movement.credits
        assert movement.balance == balance >= 0
        assert movement.total == totals[max(movement.ordinals)]
    assert state.totals == totals
    assert balance == sum(grant.remaining for grant in state.grants.values())
    assert state.pending == sum(grant.credits for grant in state.grants.values() if grant.state is State.PENDING)


@given(histories, st.sampled_from([0, 600]))
def test_a_grant_knows_the_positions_of_its_story(history, grace_s):
    state, _ = run(history, grace_s)
    for grant in state.grants.values():
        own = [m for m in state.movements if not m.usage_kind and m.usage_ref == grant.grant_ref]
        drawn_at = [m.ordinals[0] for m in state.movements if grant.grant_no in dict(m.draws)]
        closed_at = [m.ordinals[0] for m in own if m.kind is not Kind.ALLOT] or drawn_at
        assert grant.allot_position == next((m.ordinals[0] for m in own if m.kind is Kind.ALLOT), None)
        assert (grant.first_draw_position, grant.last_draw_position) == (
            (drawn_at[0], drawn_at[-1]) if drawn_at else (None, None)
        )
        assert grant.close_position == (closed_at[-1] if not grant.open and grant.allot_position is not None else None)


@given(histories, st.sampled_from([0, 600]))
def test_movements_without_overflow_add_up_to_what_remains(history, grace_s):
    state, _ = run(history, grace_s)
    allotted = [grant for grant in state.grants.values() if grant.allot_position is not None]
    moved = sum(movement.credits for movement in state.movements if movement.kind is not Kind.OVERFLOW)
    assert moved == sum(grant.remaining for grant in allotted)
    for grant in allotted:
        assert grant.credits == grant.drawn + grant.expired + grant.revoked + grant.remaining
        assert grant.remaining >= 0
        assert grant.state is (State.ACTIVE if grant.remaining else State.CLOSED)


@given(histories)
def test_every_usage_that_is_not_refused_is_consumed_or_overflows_exactly_once(history):
    state, refused = run(history)
    refused_ids = {id(event) for event, _ in refused}
    wanted = {}
    for event, _ in history:
        if isinstance(event, UsageEvent) and event.credits and id(event) not in refused_ids:
            wanted.setdefault(event.usage_ref, event.credits)
    moved = {}
    for movement in state.movements:
        if movement.usage_kind:
            moved[movement.usage_ref] = moved.get(movement.usage_ref, 0) - movement.credits
        if movement.kind is Kind.CONSUME:
            assert sum(drawn for _, drawn in movement.draws) == -movement.credits
    assert moved == wanted


@given(histories, st.sampled_from([0, 600]))
def test_every_event_twice_has_the_same_result_as_once_and_a_settle(history, grace_s):
    settle = SettleEvent(org_id="org_a")
    once, _ = run([step for event, now in history for step in ((event, now), (settle, now))], grace_s)
    twice, _ = run([step for step in history for _ in range(2)], grace_s)
    assert [movement[1:] for movement in twice.movements] == [movement[1:] for movement in once.movements]
    assert twice.grants == once.grants


@given(histories)
def test_a_closed_grant_is_never_drawn(history):
    state, _ = run(history)
    by_number = {grant.grant_no: grant for grant in state.grants.values()}
    closed = set()
    for movement in state.movements:
        if movement.kind in {Kind.EXPIRE, Kind.REVOKE}:
            closed.add(movement.usage_ref)
        for grant_no, _ in movement.draws:
            assert by_number[grant_no].grant_ref not in closed
