"""How large may the sums of an organisation's credits become?"""

from datetime import UTC, datetime, timedelta

import pytest

from feeds.movement import Kind
from feeds.page import feed_number
from tests.histories import organisation, terms
from worker.events import CREDITS_MAX, GrantEvent, RevokeEvent, UsageEvent
from worker.ledger.posting import TOTAL_MAX, TotalTooLarge, post

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
REST = 7


def organisation_with(kind, total, usage_number=None):
    """Return an organisation whose movements of one kind have a sum of credits. It has no grant."""
    state = organisation()
    for number in (0, feed_number(kind, None), feed_number(kind, usage_number)):
        state.totals[number] = total
    return state


def post_all(state, *events):
    for event in events:
        post(event, state, terms(NOW), added_at=NOW)


def grant(ref, amount, **fields):
    return GrantEvent(org_id="org_a", grant_ref=ref, credits=amount, source="plan", **fields)


def usage(ref, amount):
    return UsageEvent(org_id="org_a", usage_ref=ref, usage_kind="ai_usage", credits=amount)


@pytest.mark.parametrize("start", [None, LATER])
def test_a_grant_that_would_carry_all_grants_past_what_json_holds_exactly_is_refused(start):
    state = organisation_with(Kind.ALLOT, TOTAL_MAX - REST)
    post_all(state, grant("fits", REST, effective_at=start))
    movements = len(state.movements)

    with pytest.raises(TotalTooLarge) as refused:
        post_all(state, grant("too_much", 1, effective_at=start))
    assert refused.value.code == "unpostable"
    assert len(state.movements) == movements
    assert "too_much" not in state.grants

    post(usage("u", 1), state, terms(LATER), added_at=LATER)
    assert state.totals[feed_number(Kind.ALLOT, None)] == TOTAL_MAX
    assert state.pending == 0


def test_a_pending_grant_that_is_revoked_makes_room_and_one_that_was_allotted_does_not():
    state = organisation_with(Kind.ALLOT, TOTAL_MAX - 2 * REST)
    post_all(state, grant("pending", REST, effective_at=LATER), grant("active", REST))
    for ref in ("pending", "active"):
        post_all(state, RevokeEvent(org_id="org_a", grant_ref=ref))

    with pytest.raises(TotalTooLarge):
        post_all(state, grant("more", REST + 1))
    post_all(state, grant("as_much_as_was_pending", REST))


def test_a_grant_that_is_repeated_is_no_new_one():
    state = organisation_with(Kind.ALLOT, TOTAL_MAX - REST)
    post_all(state, grant("fits", REST), grant("fits", REST))
    assert state.totals[feed_number(Kind.ALLOT, None)] == TOTAL_MAX


def test_a_usage_that_would_carry_the_overflow_past_what_json_holds_exactly_is_refused():
    state = organisation_with(Kind.OVERFLOW, REST - TOTAL_MAX, usage_number=0)
    post_all(state, usage("fits", REST))

    with pytest.raises(TotalTooLarge):
        post_all(state, usage("too_much", 1))
    assert [movement.usage_ref for movement in state.movements] == ["fits"]
    assert state.movements[-1].total == -TOTAL_MAX

    post_all(state, grant("g", 5), usage("too_much", 5))  # it draws, and nothing overflows
    assert state.movements[-1].kind is Kind.CONSUME


def test_a_usage_that_would_carry_what_was_consumed_past_what_json_holds_exactly_is_refused_whole():
    state = organisation_with(Kind.CONSUME, REST - TOTAL_MAX, usage_number=0)
    post_all(state, grant("g", CREDITS_MAX))

    with pytest.raises(TotalTooLarge):
        post_all(state, usage("too_much", REST + 1))
    post_all(state, usage("fits", REST))
    assert state.grants["g"].drawn == REST
    assert state.movements[-1].total == -TOTAL_MAX
