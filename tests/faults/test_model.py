"""Would the plain model see it, if the ledger were wrong?"""

import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.model import Account, replay, show_clock
from tests.faults.traffic import Traffic


@pytest.fixture(scope="module")
def history():
    """Give an organisation's events, and the ledger that batches of them come to."""
    traffic = Traffic(7)
    while len(traffic.sent["org_s1"]) < 1000:
        traffic.batch(10)
    events, rng = traffic.sent["org_s1"], random.Random(7)
    account, ledger, now = Account(), [], datetime.now(UTC)
    for event in events:
        if rng.random() < 0.3:
            now += timedelta(seconds=2 * rng.random())
        account.settle(show_clock(now))
        account.post(event, show_clock(now))
        ledger += [(show_clock(now), line) for line in account.lines[len(ledger) :]]
    return events, ledger


def test_a_right_ledger_has_no_difference(history):
    events, ledger = history
    assert {line.kind for _, line in ledger} == {"allot", "consume", "overflow", "expire", "revoke"}
    assert replay(events, ledger)[0] == []


@pytest.mark.parametrize("kind", ["allot", "consume", "overflow", "expire", "revoke"])
def test_a_line_that_is_missing_double_or_of_other_credits_is_a_difference(history, kind):
    events, ledger = history
    places = [place for place, (_, line) in enumerate(ledger) if line.kind == kind]
    for place in {places[0], places[len(places) // 2], places[-1]}:
        clock, line = ledger[place]
        for instead in ([], [ledger[place]] * 2, [(clock, line._replace(credits=line.credits - 1))]):
            assert replay(events, [*ledger[:place], *instead, *ledger[place + 1 :]])[0]


def test_a_draw_from_the_wrong_grant_is_a_difference(history):
    events, ledger = history
    place = next(place for place, (_, line) in enumerate(ledger) if line.draws)
    clock, line = ledger[place]
    [(grant, drawn), *others] = line.draws
    wrong = line._replace(draws=((grant + 1, drawn), *others))
    assert replay(events, [*ledger[:place], (clock, wrong), *ledger[place + 1 :]])[0]


def test_two_events_that_changed_places_are_a_difference(history):
    events, ledger = history
    usages = [n for n, event in enumerate(events) if event["type"] == "usage" and event["credits"]]
    other = [*events]
    other[usages[0]], other[usages[-1]] = other[usages[-1]], other[usages[0]]
    assert replay(other, ledger)[0]


def test_an_event_that_the_ledger_lacks_is_a_difference(history):
    events, ledger = history
    late = {"type": "usage", "org_id": "org_s1", "usage_ref": "late", "usage_kind": "ai_usage", "credits": 1}
    assert replay([*events, late | {"occurred_at": "2026"}], ledger)[0]
