from collections import Counter
from datetime import UTC, datetime

from worker.events import check_event
from worker.local.demo import CUSTOMERS, Traffic

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def count_usage_refs(events: list[dict]) -> Counter:
    return Counter((event["org_id"], event["usage_ref"]) for event in events if event["type"] == "usage")


def test_the_demos_history_holds_every_type_of_event_one_repeat_and_one_conflict():
    history = Traffic(seed=1).history(NOW)

    assert {check_event(event).type for event in history} == {"usage", "grant", "revoke"}
    assert {event["org_id"] for event in history} == {customer.org_id for customer in CUSTOMERS}
    repeated = [ref for ref, times in count_usage_refs(history).items() if times > 1]
    contents = {
        ref: {e["credits"] for e in history if e["type"] == "usage" and (e["org_id"], e["usage_ref"]) == ref}
        for ref in repeated
    }
    assert sorted(map(len, contents.values())) == [1, 2]


def test_the_demos_traffic_continues_with_valid_events_of_every_type():
    traffic = Traffic(seed=1)
    traffic.history(NOW)
    events = [event for _ in range(500) for event in traffic.next_events(NOW)]

    assert {check_event(event).type for event in events} == {"usage", "grant", "revoke"}
    assert any(event.get("effective_at", NOW) > NOW for event in events)


def test_two_runs_of_the_demo_share_only_the_refs_of_plans():
    first, second = (set(count_usage_refs(Traffic(seed=1).history(NOW))) for _ in range(2))
    plans = [[event for event in Traffic(seed=seed).history(NOW) if event.get("source") == "plan"] for seed in (1, 2)]

    assert not first & second
    assert plans[0] == plans[1]


def test_the_demo_sends_between_five_and_twenty_events_a_second():
    traffic = Traffic(seed=1)
    traffic.history(NOW)
    batches = [next(batch) for batch in [traffic.batches()] for _ in range(500)]

    assert 5 < sum(len(events) for events, _ in batches) / sum(rest_s for _, rest_s in batches) < 20
