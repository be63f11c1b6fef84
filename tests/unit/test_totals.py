"""How many credits may the open grants of an organisation hold?"""

from datetime import UTC, datetime, timedelta

import pytest

from tests.histories import organisation, terms
from worker.events import CREDITS_MAX, GrantEvent, RevokeEvent, UsageEvent
from worker.ledger.grants import Grant
from worker.ledger.organisation import learn
from worker.ledger.posting import TOTAL_MAX, TotalTooLarge, post

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
ALMOST = TOTAL_MAX // CREDITS_MAX
REST = TOTAL_MAX % CREDITS_MAX


def full_organisation():
    """Return an organisation whose grants hold as much as `ALMOST` grants can; half of them start later."""
    state = organisation()
    for number in range(1, ALMOST + 1):
        pending = number % 2 == 0
        known = Grant(
            number, f"g{number}", CREDITS_MAX, "plan", 50, LATER if pending else None, None,
            remaining=0 if pending else CREDITS_MAX, allot_position=None if pending else number,
        )  # fmt: skip
        learn(state, known, terms(NOW))
    state.grant_count, state.promised = ALMOST, ALMOST * CREDITS_MAX
    return state


def post_all(state, *events):
    for event in events:
        post(event, state, terms(NOW), added_at=NOW)


def grant(ref, amount, **fields):
    return GrantEvent(org_id="org_a", grant_ref=ref, credits=amount, source="plan", **fields)


@pytest.mark.parametrize("start", [None, LATER])
def test_a_grant_that_would_carry_the_balance_past_what_json_holds_exactly_is_refused(start):
    state = full_organisation()
    post_all(state, grant("fits", REST, effective_at=start))
    movements = len(state.movements)

    with pytest.raises(TotalTooLarge) as refused:
        post_all(state, grant("too_much", 1, effective_at=start))
    assert refused.value.code == "unpostable"
    assert len(state.movements) == movements
    assert "too_much" not in state.grants

    later = terms(LATER)
    post(UsageEvent(org_id="org_a", usage_ref="u", usage_kind="ai_usage", credits=1), state, later, added_at=LATER)
    assert sum(each.remaining for each in state.grants.values()) == TOTAL_MAX - 1


def test_a_refused_grant_is_taken_once_credits_were_used_or_revoked():
    state = full_organisation()
    post_all(state, grant("fits", REST))
    usage = UsageEvent(org_id="org_a", usage_ref="u", usage_kind="ai_usage", credits=5)

    post_all(state, usage, grant("as_much_as_was_used", 5))
    with pytest.raises(TotalTooLarge):
        post_all(state, grant("more", CREDITS_MAX))
    post_all(state, RevokeEvent(org_id="org_a", grant_ref="g2"), grant("more", CREDITS_MAX))
    assert state.promised == TOTAL_MAX


def test_a_grant_that_is_repeated_is_no_new_one():
    state = full_organisation()
    post_all(state, grant("fits", REST), grant("fits", REST))
    assert state.promised == TOTAL_MAX
