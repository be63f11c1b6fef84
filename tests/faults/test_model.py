"""Does the plain model notice it if the ledger is wrong?"""

import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.model import Account, format_clock, replay
from tests.faults.traffic import Traffic


@pytest.fixture(scope="module")
def history():
    """Give an organisation's events, and the ledger that batches of them produce."""
    traffic = Traffic(7)
    while len(traffic.sent["org_s1"]) < 1000:
        traffic.batch(10)
    events, rng = traffic.sent["org_s1"], random.Random(7)
    account, ledger, now = Account(), [], datetime.now(UTC)
    for event in events:
        if rng.random() < 0.3:
            now += timedelta(seconds=2 * rng.random())
        account.settle(format_clock(now))
        account.post(event, format_clock(now))
        ledger += [(format_clock(now), movement) for movement in account.movements[len(ledger) :]]
    return events, ledger


def test_a_right_ledger_has_no_difference(history):
    events, ledger = history
    assert {movement.kind for _, movement in ledger} == {"allot", "consume", "overflow", "expire", "revoke"}
    assert replay(events, ledger)[0] == []


@pytest.mark.parametrize("kind", ["allot", "consume", "overflow", "expire", "revoke"])
def test_a_movement_that_is_missing_or_doubled_or_has_other_credits_is_a_difference(history, kind):
    events, ledger = history
    places = [place for place, (_, movement) in enumerate(ledger) if movement.kind == kind]
    for place in {places[0], places[len(places) // 2], places[-1]}:
        clock, movement = ledger[place]
        with_other_credits = movement._replace(credits=movement.credits - 1)
        for replacement in ([], [ledger[place]] * 2, [(clock, with_other_credits)]):
            assert replay(events, [*ledger[:place], *replacement, *ledger[place + 1 :]])[0]


def test_a_draw_from_the_wrong_grant_is_a_difference(history):
    events, ledger = history
    place = next(place for place, (_, movement) in enumerate(ledger) if movement.draws)
    clock, movement = ledger[place]
    [(grant, drawn), *others] = movement.draws
    wrong = movement._replace(draws=((grant + 1, drawn), *others))
    assert replay(events, [*ledger[:place], (clock, wrong), *ledger[place + 1 :]])[0]


def test_two_events_in_exchanged_places_are_a_difference(history):
    events, ledger = history
    usages = [n for n, event in enumerate(events) if event["type"] == "usage" and event["credits"]]
    exchanged = [*events]
    exchanged[usages[0]], exchanged[usages[-1]] = exchanged[usages[-1]], exchanged[usages[0]]
    assert replay(exchanged, ledger)[0]


def test_an_event_that_the_ledger_lacks_is_a_difference(history):
    events, ledger = history
    late = {"type": "usage", "org_id": "org_s1", "usage_ref": "late", "usage_kind": "ai_usage", "credits": 1}
    assert replay([*events, late | {"occurred_at": "2026"}], ledger)[0]
