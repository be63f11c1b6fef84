"""A sweep wakes drains if entries wait, and adds `settle` events for due grants."""

import json

import psycopg
import pytest

from feeds.movement import KIND_OF_LETTER
from feeds.schema import check_ledger
from worker.intake import sweep as sweeping
from worker.intake.batch import Intake
from worker.intake.drain import drain_all
from worker.intake.streams import AWAKE, add, connect, place, shard_of, stream_of
from worker.intake.sweep import HELPER_LIFE_S, SETTLES, SWEEPING, UNANSWERED_MAX, now_s, sweep
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
def run_sweep(connection, streams, ledger):
    """Give the function that sweeps once and returns what each wake that it sent is for: a drain, or a helping drain."""

    def run():
        wakes = []
        streams.delete(SWEEPING)
        sweep(connection, streams, ledger, wakes_of(streams, wakes))
        return wakes

    return run


def wakes_of(streams, wakes):
    """Return the function that records a wake; that of a helping drain must be of use for two more seconds."""

    def wake(helper_until=None):
        assert helper_until is None or 1 < helper_until - now_s(streams) <= HELPER_LIFE_S
        wakes.append("drain" if helper_until is None else "helper")

    return wake


@pytest.fixture
def drain_streams(connection, streams, ledger):
    return lambda: drain_all(Intake(connection, streams, ledger, lambda *_: None, lambda: None))


def grant(org_id, **fields):
    return {"type": "grant", "org_id": org_id, "grant_ref": "g", "credits": 10, "source": "plan"} | fields


def make_due(connection, streams, drain_streams, org_ids):
    """Give every organisation a grant, and set its end to a minute ago."""
    add(streams, [place(grant(org_id, expires_at="2099-01-01T00:00:00Z"), 8) for org_id in org_ids])
    drain_streams()
    streams.delete(AWAKE)
    connection.execute("UPDATE grants SET expires_at = now() - interval '1 minute'")


def waiting_events(streams):
    return [json.loads(fields[b"event"]) for shard in range(8) for _, fields in streams.xrange(stream_of(shard))]


def kinds_of_movements(connection):
    return [
        KIND_OF_LETTER[kind] for (kind,) in connection.execute("SELECT kind FROM movements ORDER BY org_no, position")
    ]


def test_if_nothing_waits_and_nothing_is_due_no_drain_is_woken(run_sweep):
    assert run_sweep() == []


def test_a_grant_whose_end_has_come_expires(connection, streams, drain_streams, run_sweep):
    make_due(connection, streams, drain_streams, ["org_a"])
    assert run_sweep() == ["drain"]
    drain_streams()
    assert kinds_of_movements(connection) == ["allot", "expire"]
    streams.delete(AWAKE)
    assert run_sweep() == []


def test_a_grant_whose_start_has_come_is_allotted(connection, streams, drain_streams, run_sweep):
    add(streams, [place(grant("org_a", effective_at="2098-01-01T00:00:00Z"), 8)])
    drain_streams()
    streams.delete(AWAKE)
    assert run_sweep() == []
    connection.execute("UPDATE grants SET effective_at = now() - interval '1 minute'")
    run_sweep()
    drain_streams()
    assert kinds_of_movements(connection) == ["allot"]


def test_a_grant_is_not_due_before_the_expiry_grace_is_over(connection, streams, drain_streams, ledger):
    make_due(connection, streams, drain_streams, ["org_a"])
    assert sweeping.find_due(connection, ledger._replace(expiry_grace_s=3600)) == []
    assert sweeping.find_due(connection, ledger) == ["org_a"]


def test_two_sweeps_at_once_expire_a_grant_once(connection, streams, drain_streams, run_sweep):
    make_due(connection, streams, drain_streams, ["org_a"])
    run_sweep()
    streams.delete(SETTLES)
    run_sweep()
    assert len(waiting_events(streams)) == 2
    drain_streams()
    assert kinds_of_movements(connection) == ["allot", "expire"]


def test_an_unanswered_settle_is_sent_again_only_after_ten_seconds(connection, streams, drain_streams, run_sweep):
    make_due(connection, streams, drain_streams, ["org_a"])
    run_sweep()
    run_sweep()
    assert len(waiting_events(streams)) == 1
    streams.hincrbyfloat(SETTLES, "org_a", -11)
    run_sweep()
    assert len(waiting_events(streams)) == 2


def test_a_shard_gets_a_bounded_number_of_unanswered_settles(connection, streams, drain_streams, run_sweep):
    org_ids = [org_id for number in range(20000) if shard_of(org_id := f"org_{number}", 8) == 3]
    of_one_shard = org_ids[: UNANSWERED_MAX + 50]
    make_due(connection, streams, drain_streams, of_one_shard)
    run_sweep()
    run_sweep()
    assert len(waiting_events(streams)) == UNANSWERED_MAX
    drain_streams()
    run_sweep()
    drain_streams()
    assert kinds_of_movements(connection).count("expire") == UNANSWERED_MAX + 50


def test_a_drain_is_woken_for_entries_that_wait(streams, run_sweep):
    streams.xadd(stream_of(0), {"event": "{}"})
    assert run_sweep() == ["drain"]


def test_the_awake_key_is_ignored_once_the_first_entry_is_over_a_second_old(streams, run_sweep):
    streams.set(AWAKE, "another")
    streams.xadd(stream_of(0), {"event": "{}"})
    assert run_sweep() == []
    streams.delete(stream_of(0))
    streams.xadd(stream_of(0), {"event": "{}"}, id="1-1")
    assert run_sweep() == ["helper"]


def test_in_a_backlog_helping_drains_are_woken_by_messages_that_are_of_use_for_two_seconds(streams, run_sweep):
    streams.set(AWAKE, "another")
    with streams.pipeline() as pipeline:
        for shard in range(8):
            for _ in range(200):
                pipeline.xadd(stream_of(shard), {"event": "{}"})
        pipeline.execute()
    assert run_sweep() == ["helper"] * 3


def test_a_key_that_is_not_a_stream_does_not_hide_other_shards(streams, run_sweep):
    streams.set(stream_of(0), "not a stream")
    streams.xadd(stream_of(1), {"event": "{}"})
    assert run_sweep() == ["drain"]


def test_sweeps_that_have_piled_up_do_nothing(connection, streams, ledger, run_sweep):
    streams.xadd(stream_of(0), {"event": "{}"})
    assert run_sweep() == ["drain"]
    wakes = []
    for _ in range(100):
        sweep(connection, streams, ledger, wakes_of(streams, wakes))
    assert wakes == []
