"""Once a second: wakes for what waits, and settles for what is due."""

import json

import psycopg
import pytest

from feeds.movement import KIND_OF_LETTER
from feeds.schema import check_ledger
from worker.intake import sweep as sweeping
from worker.intake.batch import Intake
from worker.intake.drain import drain_all
from worker.intake.streams import AWAKE, add, connect, place, shard_of, stream_of
from worker.intake.sweep import HELPER_EXPIRES_S, SETTLES, UNANSWERED_MAX, sweep
from worker.settings import WorkerSettings


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def streams(redis_url):
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def ledger(connection):
    return check_ledger(connection, WorkerSettings())


@pytest.fixture
def swept(connection, streams, ledger):
    """Sweep once, and return the wakes that it sent, by when they expire."""

    def run():
        wakes = []
        sweep(connection, streams, ledger, lambda expires_s=60: wakes.append(expires_s))
        return wakes

    return run


@pytest.fixture
def drained(connection, streams, ledger):
    return lambda: drain_all(Intake(connection, streams, ledger, lambda *_: None, lambda: None))


def grant(org_id, **fields):
    return {"type": "grant", "org_id": org_id, "grant_ref": "g", "credits": 10, "source": "plan"} | fields


def make_due(connection, streams, drained, org_ids):
    """Give every organisation a grant, and let it end a minute ago."""
    add(streams, [place(grant(org_id, expires_at="2099-01-01T00:00:00Z"), 8) for org_id in org_ids])
    drained()
    streams.delete(AWAKE)
    connection.execute("UPDATE grants SET expires_at = now() - interval '1 minute'")


def waiting(streams):
    return [json.loads(fields[b"event"]) for shard in range(8) for _, fields in streams.xrange(stream_of(shard))]


def kinds(connection):
    return [
        KIND_OF_LETTER[kind] for (kind,) in connection.execute("SELECT kind FROM movements ORDER BY org_no, position")
    ]


def test_nothing_waits_and_nothing_is_due_so_nobody_is_woken(swept):
    assert swept() == []


def test_an_end_that_has_come_gets_its_line(connection, streams, drained, swept):
    make_due(connection, streams, drained, ["org_a"])
    assert swept() == [60]
    drained()
    assert kinds(connection) == ["allot", "expire"]
    streams.delete(AWAKE)
    assert swept() == []


def test_a_start_that_has_come_gets_its_line(connection, streams, drained, swept):
    add(streams, [place(grant("org_a", effective_at="2098-01-01T00:00:00Z"), 8)])
    drained()
    streams.delete(AWAKE)
    assert swept() == []
    connection.execute("UPDATE grants SET effective_at = now() - interval '1 minute'")
    swept()
    drained()
    assert kinds(connection) == ["allot"]


def test_an_end_waits_for_the_grace(connection, streams, drained, ledger):
    make_due(connection, streams, drained, ["org_a"])
    assert sweeping.find_due(connection, ledger._replace(expiry_grace_s=3600)) == []
    assert sweeping.find_due(connection, ledger) == ["org_a"]


def test_two_sweeps_at_once_expire_once(connection, streams, drained, swept):
    make_due(connection, streams, drained, ["org_a"])
    swept()
    streams.delete(SETTLES)
    swept()
    assert len(waiting(streams)) == 2
    drained()
    assert kinds(connection) == ["allot", "expire"]


def test_an_unanswered_settle_is_sent_again_after_ten_seconds_only(connection, streams, drained, swept):
    make_due(connection, streams, drained, ["org_a"])
    swept()
    swept()
    assert len(waiting(streams)) == 1
    streams.hincrbyfloat(SETTLES, "org_a", -11)
    swept()
    assert len(waiting(streams)) == 2


def test_a_shard_is_sent_a_bounded_number_of_unanswered_settles(connection, streams, drained, swept):
    crowded = [org_id for org_id in (f"org_{i}" for i in range(20000)) if shard_of(org_id, 8) == 3][: UNANSWERED_MAX + 50]
    make_due(connection, streams, drained, crowded)
    swept()
    swept()
    assert len(waiting(streams)) == UNANSWERED_MAX
    drained()
    swept()
    drained()
    assert kinds(connection).count("expire") == UNANSWERED_MAX + 50


def test_events_that_nobody_was_woken_for_are_found(streams, swept):
    streams.xadd(stream_of(0), {"event": "{}"})
    assert swept() == [60]


def test_a_key_that_says_awake_is_believed_for_a_second_only(streams, swept):
    streams.set(AWAKE, "somebody")
    streams.xadd(stream_of(0), {"event": "{}"})
    assert swept() == []
    streams.delete(stream_of(0))
    streams.xadd(stream_of(0), {"event": "{}"}, id="1-1")
    assert swept() == [HELPER_EXPIRES_S]


def test_a_backlog_calls_helpers_that_soon_expire(streams, swept):
    streams.set(AWAKE, "somebody")
    with streams.pipeline() as pipeline:
        for shard in range(8):
            for _ in range(200):
                pipeline.xadd(stream_of(shard), {"event": "{}"})
        pipeline.execute()
    assert swept() == [HELPER_EXPIRES_S] * 3


def test_a_key_that_is_no_stream_hides_no_other_shard(streams, swept):
    streams.set(stream_of(0), "no stream")
    streams.xadd(stream_of(1), {"event": "{}"})
    assert swept() == [60]
