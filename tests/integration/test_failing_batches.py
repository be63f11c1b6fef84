"""If a batch fails, either an event is at fault and only it is buried, or nothing is buried and `health` says why."""

import psycopg
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from redis import Redis

from tests.integration.command_line import run, run_json
from tests.integration.test_intake import RecordingIntake, dead_letters, length, refs, send, usage
from worker.intake.drain import drain_all
from worker.intake.failures import FAILURES, parse_failures
from worker.ledger import write
from worker.ledger.faults import PostingFails

TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.usage_ref LIKE '{pattern}' THEN RAISE EXCEPTION 'not today' USING ERRCODE = '{code}'; END IF;
    RETURN NEW;
END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON movements {when}
FOR EACH ROW EXECUTE FUNCTION refuse();
"""
DEFERRED = "DEFERRABLE INITIALLY DEFERRED"


@pytest.fixture
def intake(environment):
    made = RecordingIntake(environment["DATABASE_URL"], environment["REDIS_URL"])
    yield made
    made.connection.close()
    made.streams.close()


@pytest.fixture
def streams(redis_url):
    with Redis.from_url(redis_url) as client:
        yield client


def refuse(intake, pattern, code="P0001", when=DEFERRED):
    intake.connection.execute(TRIGGER.format(pattern=pattern, code=code, when=when))


def fail_at(monkeypatch, *bad_refs, error):
    """Let the rules raise an error for events with these refs; for all events if there are none."""
    post = write.post

    def fail(event, *arguments):
        if not bad_refs or getattr(event, "usage_ref", None) in bad_refs:
            raise error
        return post(event, *arguments)

    monkeypatch.setattr(write, "post", fail)


@pytest.mark.parametrize("bad", [["u3"], ["u1", "u2", "u7"], [f"u{n}" for n in range(10)]], ids=len)
@pytest.mark.parametrize(
    "error", [TypeError("a bug"), Exception("a bug"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x")]
)
def test_an_event_with_which_this_program_fails_is_buried_and_its_neighbours_are_posted(
    intake, streams, monkeypatch, error, bad
):
    fail_at(monkeypatch, *bad, error=error)
    send(streams, *[usage(f"u{n}") for n in range(10)])

    drain_all(intake)

    assert refs(intake) == [f"u{n}" for n in range(10) if f"u{n}" not in bad]
    assert [code for code, _ in dead_letters(intake)] == ["unpostable"] * len(bad)
    assert length(streams) == 0


def test_an_event_that_fails_when_no_other_waits_is_buried(intake, streams, monkeypatch):
    fail_at(monkeypatch, "u1", error=TypeError("a bug"))
    send(streams, usage("u1"))

    drain_all(intake)

    assert [code for code, _ in dead_letters(intake)] == ["unpostable"]
    rows = intake.connection.execute("SELECT message FROM dead_letters").fetchall()
    assert rows == [("posting it failed: TypeError: a bug",)]


def test_an_event_that_a_deferred_trigger_of_the_host_refuses_is_found(intake, streams):
    refuse(intake, "u3")
    send(streams, *[usage(f"u{n}") for n in range(5)])

    drain_all(intake)

    assert refs(intake) == ["u0", "u1", "u2", "u4"]
    assert [code for code, _ in dead_letters(intake)] == ["unpostable"]


@pytest.mark.parametrize("number", [1, 30])
def test_if_sound_events_fail_too_nothing_is_buried_and_health_says_why_until_a_batch_is_posted(
    intake, streams, monkeypatch, number
):
    events = [usage(f"u{n}") for n in range(number)]
    send(streams, *events)
    with monkeypatch.context() as patch:
        fail_at(patch, error=TypeError("a bug"))
        with pytest.raises(PostingFails, match="TypeError: a bug"):
            drain_all(intake)

    assert (refs(intake), dead_letters(intake), length(streams)) == ([], [], number)
    found = run_json("health", "--max-sweep-age", "1e9", code=1)
    assert (found["failing_shards"], found["last_failure"]) == (1, "sound events fail too: TypeError: a bug")
    assert found["last_failure_s"] < 60
    assert "1 shard could not be posted, the last one" in "".join(found["warnings"])
    assert "TypeError: a bug" in run("health", code=1).stdout

    drain_all(intake)

    assert refs(intake) == [f"u{n}" for n in range(number)]
    assert run_json("health", code=1)["failing_shards"] == 0


@pytest.mark.parametrize(
    ("column", "code"),
    [("NOT NULL CHECK (host > 0)", "23502"), ("GENERATED ALWAYS AS (1 / (position - position)) STORED", "22012")],
)
def test_a_column_of_the_host_that_refuses_every_row_buries_nothing(intake, streams, column, code):
    intake.connection.execute(f"ALTER TABLE movements ADD COLUMN host bigint {column}")
    send(streams, *[usage(f"u{n}") for n in range(20)])

    with pytest.raises(PostingFails, match=code):
        drain_all(intake)

    assert (dead_letters(intake), length(streams)) == ([], 20)
    assert "organisations" not in str(intake.connection.execute("SELECT org_id FROM organisations").fetchall())
    intake.connection.execute("ALTER TABLE movements DROP COLUMN host")
    drain_all(intake)
    assert len(refs(intake)) == 20


@pytest.mark.parametrize("code", ["0A000", "3F000", "25006", "72000", "XX001", "HV000", "YB123"])
def test_errors_that_are_never_an_events_fault_bury_nothing_even_if_one_event_meets_them(intake, streams, code):
    refuse(intake, "u3", code, when="")
    send(streams, *[usage(f"u{n}") for n in range(6)])

    with pytest.raises(psycopg.Error, match="not today"):
        drain_all(intake)

    assert (refs(intake), dead_letters(intake), length(streams)) == ([], [], 6)
    [failure] = parse_failures(streams.hgetall(FAILURES))
    assert failure.error.endswith(f"(SQLSTATE {code}): not today")


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), MemoryError(), BrokenPipeError(), KeyboardInterrupt()])
def test_errors_of_the_process_pass_through(intake, streams, monkeypatch, error):
    fail_at(monkeypatch, "u1", error=error)
    send(streams, usage("u0"), usage("u1"))

    with pytest.raises(type(error)):
        drain_all(intake)

    assert (dead_letters(intake), length(streams)) == ([], 2)


def test_the_metrics_tell_which_shard_fails(intake, streams, monkeypatch):
    from worker.metrics.scrape import redis_stream_metrics  # noqa: PLC0415

    def samples():
        return [
            (sample.labels["shard"], sample.value >= 0)
            for metric in redis_stream_metrics()
            for sample in metric.samples
            if sample.name == "usage_feeds_shard_failure_age_seconds"
        ]

    assert samples() == []
    send(streams, usage("u1"))
    with monkeypatch.context() as patch:
        fail_at(patch, error=TypeError("a bug"))
        with pytest.raises(PostingFails):
            drain_all(intake)
    assert samples() == [("6", True)]
    drain_all(intake)
    assert samples() == []
