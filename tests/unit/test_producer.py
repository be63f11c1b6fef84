"""Where does a producer find the streams, and what does it refuse before it sends?"""

import json

import pytest

from worker.events import EventInvalid
from worker.producer import Producer


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("USAGE_FEEDS_STATE", str(tmp_path))
    return tmp_path


def test_settings_come_from_the_environment_or_else_from_a_running_up(state, monkeypatch):
    facts = {"redis_url": "redis://from-up:1/0", "event_shards": 4, "usage_kinds": "a,b"}
    (state / "addresses.json").write_text(json.dumps(facts))
    with Producer() as producer:
        assert (producer.event_shards, producer.usage_kinds) == (4, ("a", "b"))
        assert producer._streams.get_connection_kwargs()["host"] == "from-up"
    monkeypatch.setenv("REDIS_URL", "redis://from-environment:1/0")
    monkeypatch.setenv("EVENT_SHARDS", "16")
    with Producer(usage_kinds=("c",)) as producer:
        assert (producer.event_shards, producer.usage_kinds) == (16, ("c",))
        assert producer._streams.get_connection_kwargs()["host"] == "from-environment"


def test_without_an_address_the_error_says_what_to_do(state):
    with pytest.raises(ValueError, match="REDIS_URL is not set"):
        Producer()


def test_a_bad_event_is_refused_before_any_event_is_sent(state):
    with Producer("redis://127.0.0.1:1/0") as producer:
        with pytest.raises(EventInvalid) as refused:
            producer.usage("org_a", "u", "ai_usage", credits=1.5)  # type: ignore[arg-type]
        assert refused.value.fields == {
            "credits": "must be a whole number, written like 5: without quotes, point or exponent"
        }
        good = {"type": "settle", "org_id": "org_a"}
        with pytest.raises(EventInvalid):
            producer.send([good, {"type": "usage", "org_id": "org a"}])
