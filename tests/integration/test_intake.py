"""Entries are taken from the streams and posted: leases, leftovers, deletes, wakes, and entries that cannot be posted."""

import json
from datetime import UTC, datetime, timedelta
from time import monotonic

import psycopg
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisAway

from feeds.movement import KIND_OF_LETTER
from feeds.schema import check_ledger
from worker.intake import batch, poison, read_entries, rest
from worker.intake import drain as drain_module
from worker.intake.backlog import Backlog, read_backlogs
from worker.intake.batch import Intake, Outcome, measure_skew, take_batch
from worker.intake.drain import drain, drain_all, leave
from worker.intake.poison import key_of
from worker.intake.streams import AWAKE, add, add_once, connect, place, shard_of, stream_of
from worker.settings import WorkerSettings


class RecordingIntake(Intake):
    """An intake that records what it publishes and when it wakes a drain."""

    def __init__(self, database_url, redis_url):
        self.published, self.wakes = [], []
        connection = psycopg.connect(database_url, autocommit=True)
        ledger = check_ledger(connection, WorkerSettings())
        super().__init__(
            connection,
            connect(redis_url),
            ledger,
            lambda connection, posted, is_repeat: self.published.append((posted, is_repeat)),
            lambda: self.wakes.append(1),
        )


@pytest.fixture
def make_intake(database_url, redis_url):
    made = []

    def make():
        made.append(RecordingIntake(database_url, redis_url))
        return made[-1]

    yield make
    for intake in made:
        intake.connection.close()
        intake.streams.close()


@pytest.fixture
def intake(make_intake):
    return make_intake()


@pytest.fixture
def streams(redis_url):
    with Redis.from_url(redis_url) as client:
        yield client


def usage(ref, org_id="org_a", **fields):
    return {"type": "usage", "org_id": org_id, "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1} | fields


def grant(ref, org_id="org_a", **fields):
    return {"type": "grant", "org_id": org_id, "grant_ref": ref, "credits": 10, "source": "plan"} | fields


def revoke(ref, org_id="org_a"):
    return {"type": "revoke", "org_id": org_id, "grant_ref": ref}


def send(streams, *events):
    add(streams, [place(event, 8) for event in events])
    streams.delete(AWAKE)


def refs(intake):
    return [ref for (ref,) in intake.connection.execute("SELECT usage_ref FROM movements ORDER BY org_no, position")]


def dead_letters(intake):
    return intake.connection.execute("SELECT code, fields FROM dead_letters ORDER BY dead_letter_id").fetchall()


def length(streams, org_id="org_a"):
    return streams.xlen(stream_of(shard_of(org_id, 8)))


SHARD = shard_of("org_a", 8)
STREAM = stream_of(SHARD)
OTHER = next(f"org_{i}" for i in range(99) if shard_of(f"org_{i}", 8) != SHARD)


def test_what_was_posted_is_published_and_then_deleted(intake, streams):
    send(streams, usage("u1"), usage("u2"))
    drain_all(intake)
    assert refs(intake) == ["u1", "u2"]
    assert length(streams) == 0
    [(posted, is_repeat)] = intake.published
    assert [movement.usage_ref for movement in posted.movements["org_a"]] == ["u1", "u2"]
    assert not is_repeat


def test_only_entries_that_were_read_are_deleted_even_if_newer_entries_have_lower_ids_after_a_wipe(intake, streams):
    send(streams, usage("u1"))
    intake.publish = lambda connection, posted, is_repeat: wipe_and_add(streams)
    take_batch(intake, [SHARD])
    assert [entry for entry, _ in streams.xrange(STREAM)] == [b"0-1"]


def wipe_and_add(streams):
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u2"))}, id="0-1")


def test_entries_that_another_drain_has_just_posted_are_left_to_it(intake, make_intake, streams):
    send(streams, usage("u1"))
    entries = streams.xrange(STREAM)
    drain_all(intake)
    streams.delete(STREAM)
    streams.xadd(STREAM, entries[0][1], id=entries[0][0])  # by the offset, its drain has not deleted it yet
    other = make_intake()
    assert take_batch(other, [SHARD]) is Outcome.LEFTOVERS
    assert length(streams) == 1
    assert other.published == []


def test_entries_that_a_dead_drain_has_posted_are_taken_after_a_second_and_their_feeds_are_dropped(
    intake, make_intake, streams
):
    send(streams, usage("u1"))
    intake.publish = die
    with pytest.raises(DeathError):
        drain_all(intake)
    other = make_intake()
    assert take_batch(other, [SHARD]) is Outcome.LEFTOVERS
    age_offsets(intake, "1.1 seconds")
    assert take_batch(other, [SHARD]) is Outcome.POSTED
    assert refs(intake) == ["u1"]
    assert length(streams) == 0
    [(posted, is_repeat)] = other.published
    assert is_repeat
    assert posted.org_ids == {"org_a"}
    assert posted.movements == {}


class DeathError(Exception):
    pass


def die(connection, posted, is_repeat):
    raise DeathError


def age_offsets(intake, interval):
    intake.connection.execute("UPDATE stream_offsets SET moved_at = moved_at - %s::interval", [interval])


def test_a_shard_whose_offset_moved_in_the_future_is_posted(intake, make_intake, streams):
    send(streams, usage("u1"))
    drain_all(intake)
    age_offsets(intake, "-1 hour")
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u2"))}, id="1-1")
    assert take_batch(make_intake(), [SHARD]) is Outcome.POSTED
    assert refs(intake) == ["u1", "u2"]


def test_entries_with_ids_below_the_offset_are_posted_after_a_second(intake, streams):
    send(streams, usage("u1"))
    drain_all(intake)
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u2"))}, id="1-1")
    started = monotonic()
    drain_all(intake)
    assert refs(intake) == ["u1", "u2"]
    assert monotonic() - started < 3


def test_a_drain_without_a_lease_ends_at_once_and_wakes_and_publishes_nothing(intake, make_intake, streams):
    send(streams, usage("u1"))
    streams.set(AWAKE, "another")
    other = make_intake()
    with intake.connection.transaction():
        batch.lock_offsets(intake, [SHARD])
        drain(other, until=monotonic() + 5)
    assert streams.get(AWAKE) == b"another"
    assert (other.wakes, other.published, length(streams)) == ([], [], 1)


def test_a_drain_that_finds_only_leftovers_waits_until_its_end_without_spinning(intake, make_intake, streams):
    send(streams, usage("u1"))
    intake.publish = die
    with pytest.raises(DeathError):
        drain_all(intake)
    intake.connection.execute("UPDATE stream_offsets SET moved_at = moved_at + interval '0.4 seconds'")
    streams.config_resetstat()
    started = monotonic()
    drain(make_intake(), until=monotonic() + 0.5)
    assert monotonic() - started >= 0.5
    assert streams.info("commandstats")["cmdstat_xread"]["calls"] <= 5


def test_a_drain_rests_only_while_postgres_needs_long_to_lock_an_organisation(intake, streams, monkeypatch):
    rests = []
    monkeypatch.setattr(drain_module, "sleep", rests.append)
    send(streams, usage("quick"))
    drain(intake, monotonic() + 0.2)
    assert rests == []

    monkeypatch.setattr(rest, "LOCKING_TOLERATED", timedelta(seconds=-1))
    send(streams, usage("slow"))
    drain(intake, monotonic() + 0.2)
    assert len(rests) == 1
    assert 0 < rests[0] <= rest.REST_MAX_S


def test_a_drain_that_leaves_wakes_a_successor_if_it_has_posted_anything(intake, make_intake, streams):
    send(streams, usage("u1"))
    drain(intake, until=monotonic() + 0.1)
    assert refs(intake) == ["u1"]
    assert intake.wakes == [1]
    assert streams.get(AWAKE) == b"successor"
    successor = make_intake()
    drain(successor, until=monotonic() + 0.1)
    assert successor.wakes == []  # nothing came: nothing runs any more


def test_a_drain_that_leaves_wakes_a_successor_if_entries_wait(intake, streams):
    send(streams, usage("u1"))
    streams.set(AWAKE, intake.name)
    leave(intake, range(8))
    assert intake.wakes == [1]
    assert streams.get(AWAKE) == b"successor"


def test_a_drain_that_leaves_does_not_delete_the_key_of_another(intake, streams):
    streams.set(AWAKE, "another")
    send(streams, usage("u1"))
    streams.set(AWAKE, "another")
    leave(intake, range(8))
    assert streams.get(AWAKE) == b"another"
    assert intake.wakes == []


def test_without_a_backlog_one_batch_takes_all_shards(intake, streams):
    send(streams, *[usage("u", f"org_{i}") for i in range(40)])
    assert take_batch(intake, list(range(8))) is Outcome.POSTED
    assert len(refs(intake)) == 40


def test_in_a_backlog_a_batch_takes_one_shard_and_leaves_the_others_to_other_drains(intake, make_intake, streams):
    send(streams, *[usage(f"u{i}", org_id) for org_id in ("org_a", OTHER) for i in range(600)])
    other = make_intake()
    with intake.connection.transaction():
        leases = batch.lease(intake, batch.find_waiting(intake, list(range(8))))
        assert len(leases) == 1
        assert take_batch(other, [SHARD, shard_of(OTHER, 8)]) is Outcome.POSTED
    assert len(refs(intake)) == 600


def test_a_batch_takes_a_bounded_number_of_entries_of_a_shard(intake, streams, monkeypatch):
    monkeypatch.setattr(poison, "BATCH_MAX", 3)
    send(streams, *[usage(f"u{i}") for i in range(5)])
    assert take_batch(intake, [SHARD]) is Outcome.POSTED
    assert refs(intake) == ["u0", "u1", "u2"]


def test_a_busy_shard_does_not_starve_another(intake, streams):
    send(streams, *[usage(f"u{i}") for i in range(3000)], usage("quiet", OTHER))
    batches = 0
    while "quiet" not in refs(intake):
        take_batch(intake, [SHARD, shard_of(OTHER, 8)])
        batches += 1
    assert batches <= 7


BAD = {
    b"": "undecodable",
    b"{": "undecodable",
    b"\xff\xfe": "undecodable",
    b"[]": "invalid_event",
    b'"usage"': "invalid_event",
    b'{"type": "unknown"}': "invalid_event",
    b" " * 65537: "too_large",
    json.dumps(usage("u", credits="1")).encode(): "invalid_event",
    json.dumps(usage("u", credits=1.5)).encode(): "invalid_event",
    json.dumps(usage("u", credits=True)).encode(): "invalid_event",
    json.dumps(usage("u", credits=-1)).encode(): "invalid_event",
    json.dumps(usage("u", credits=2**63)).encode(): "invalid_event",
    json.dumps(usage("u", credits=float("nan"))).encode(): "invalid_event",
    json.dumps(usage("u")).replace('"credits": 1', '"credits": 1e400').encode(): "invalid_event",
    json.dumps(usage("u", unknown=1)).encode(): "invalid_event",
    json.dumps(usage("u", occurred_at="2026-06-01T10:00:00")).encode(): "invalid_event",
    json.dumps(usage("u", occurred_at="9999-12-31T23:59:59-12:00")).encode(): "invalid_event",
    json.dumps(usage("u", occurred_at=1750000000)).encode(): "invalid_event",
    json.dumps(usage("u\u0000")).encode(): "invalid_event",
    json.dumps(usage("u\U0001f600")).encode(): "invalid_event",
    json.dumps(usage("u\ud800")).encode(): "undecodable",
    json.dumps({"type\u0000": 1, "org_id": "org_a"}).encode(): "invalid_event",
    json.dumps(usage("u", usage_kind="unheard_of")).encode(): "invalid_event",
    json.dumps({**revoke("g"), "reason": "a\u0000b"}).encode(): "invalid_event",
    json.dumps(usage("u", occurred_at="2199-01-01T00:00:00Z")).encode(): "occurred_in_future",
    json.dumps(revoke("never_seen")).encode(): "unknown_grant",
}


@pytest.mark.parametrize(("raw", "code"), BAD.items(), ids=[f"{raw[:60]!r}" for raw in BAD])
def test_a_bad_event_is_buried_with_its_code_and_the_events_around_it_are_posted(intake, streams, raw, code):
    send(streams, usage("before"))
    streams.xadd(STREAM, {"event": raw})
    send(streams, usage("after"))
    drain_all(intake)
    assert refs(intake) == ["before", "after"]
    [(found, fields)] = dead_letters(intake)
    assert found == code
    assert bool(fields) == (code == "invalid_event")
    assert length(streams) == 0


def test_an_entry_without_the_field_event_is_buried_and_other_fields_are_ignored(intake, streams):
    streams.xadd(STREAM, {"other": "x"})
    streams.xadd(STREAM, {"event": json.dumps(usage("u")), "other": "x"})
    drain_all(intake)
    assert refs(intake) == ["u"]
    assert [code for code, _ in dead_letters(intake)] == ["undecodable"]


def test_an_event_in_the_wrong_shard_is_posted(intake, streams):
    streams.xadd(stream_of(shard_of(OTHER, 8)), {"event": json.dumps(usage("u"))})
    drain_all(intake)
    assert refs(intake) == ["u"]


def refuse_ref(intake, ref, errcode="P0001"):
    """Make the database refuse movements with a ref."""
    intake.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF new.usage_ref = '{ref}' THEN RAISE EXCEPTION 'no' USING ERRCODE = '{errcode}'; END IF;"
        " RETURN new; END $$"
    )
    intake.connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON movements FOR EACH ROW EXECUTE FUNCTION refuse()")


def test_an_event_that_the_database_refuses_is_found_by_halving_and_only_it_is_buried(intake, streams):
    refuse_ref(intake, "u33")
    send(streams, *[usage(f"u{i}") for i in range(100)])
    drain_all(intake)
    assert refs(intake) == [f"u{i}" for i in range(100) if i != 33]
    assert [code for code, _ in dead_letters(intake)] == ["unpostable"]


def test_a_grant_that_the_database_refuses_is_found_and_only_it_is_buried(intake, streams):
    intake.connection.execute("ALTER TABLE grants ADD CHECK (priority <> 7)")
    send(streams, grant("g1"), grant("g2", priority=7), usage("u"), grant("g3"))
    drain_all(intake)
    assert refs(intake) == ["g1", "u", "g3"]
    assert [code for code, _ in dead_letters(intake)] == ["unpostable"]


def test_a_drain_that_cannot_publish_what_it_posted_does_not_count_as_a_death(intake, streams):
    send(streams, usage("u"))
    intake.publish = die
    for _ in range(5):
        age_offsets(intake, "2 seconds")
        with pytest.raises(DeathError):
            take_batch(intake, [SHARD])
    assert (refs(intake), length(streams)) == (["u"], 1)
    assert streams.hget(key_of(SHARD), "deaths") in {None, b"0"}


@pytest.mark.parametrize("errcode", ["08006", "40001", "40P01", "53100", "57014", "25006", "42501", "55P03"])
def test_an_error_of_the_server_buries_nothing_and_does_not_count_as_a_death(intake, streams, errcode):
    refuse_ref(intake, "u1", errcode)
    send(streams, usage("u0"), usage("u1"))
    for _ in range(4):
        with pytest.raises(psycopg.Error):
            take_batch(intake, [SHARD])
    assert (refs(intake), dead_letters(intake), length(streams)) == ([], [], 2)
    assert streams.hget(key_of(SHARD), "deaths") in {None, b"0"}
    intake.connection.execute("DROP TRIGGER refuse ON movements")
    drain_all(intake)
    assert refs(intake) == ["u0", "u1"]


def test_a_buried_entry_is_not_posted_when_it_is_read_again(intake, streams):
    events = [revoke("g"), grant("g")]
    send(streams, *events)
    entries = streams.xrange(STREAM)
    drain_all(intake)
    streams.delete(STREAM)
    for entry_id, fields in entries:
        streams.xadd(STREAM, fields, id=entry_id)
    age_offsets(intake, "2 seconds")
    drain_all(intake)
    assert refs(intake) == ["g"]
    assert intake.connection.execute("SELECT remaining FROM grants").fetchone() == (10,)
    assert [code for code, _ in dead_letters(intake)] == ["unknown_grant"]


def test_a_new_event_with_the_id_of_a_buried_one_is_posted(intake, streams):
    streams.xadd(STREAM, {"event": "{"}, id="7-1")
    drain_all(intake)
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u"))}, id="7-1")
    drain_all(intake)
    assert refs(intake) == ["u"]


def test_a_delivery_that_arrives_twice_is_added_once(intake, streams):
    placed = [place(event, 8) for event in [revoke("g"), grant("g")]]
    assert add_once(streams, placed, "delivery")
    drain_all(intake)
    assert not add_once(streams, placed, "delivery")
    drain_all(intake)
    assert intake.connection.execute("SELECT remaining FROM grants").fetchone() == (10,)


def test_the_same_ref_with_other_content_is_a_conflict_only_within_one_organisation(intake, streams):
    send(streams, usage("u"), usage("u", credits=2), usage("u", OTHER, credits=2), usage("u"))
    drain_all(intake)
    assert refs(intake) == ["u", "u"]
    assert [code for code, _ in dead_letters(intake)] == ["conflict"]


def test_a_shard_whose_key_is_not_a_stream_and_a_shard_at_the_largest_id_do_not_stop_the_drain(intake, streams):
    last = "18446744073709551615-18446744073709551615"
    streams.set(STREAM, "not a stream")
    streams.xadd(stream_of(shard_of(OTHER, 8)), {"event": json.dumps(usage("u", OTHER))}, id=last)
    drain_all(intake)
    drain(intake, until=monotonic() + 0.1)
    assert refs(intake) == ["u"]


def test_a_full_redis_is_drained(intake, streams, redis_url):
    send(streams, *[usage(f"u{i}") for i in range(5)])
    try:
        streams.config_set("maxmemory", "1")
        drain_all(intake)
    finally:
        streams.config_set("maxmemory", "0")
    assert len(refs(intake)) == 5
    assert length(streams) == 0


def test_if_redis_is_away_while_a_batch_is_read_nothing_is_posted_or_deleted(intake, streams):
    send(streams, usage("u"))
    [waiting] = batch.find_waiting(intake, [SHARD])
    intake.streams = connect("redis://127.0.0.1:1")
    with pytest.raises(RedisAway), intake.connection.transaction():
        batch.read(intake, batch.lease(intake, [waiting]), {SHARD: waiting})
    assert (refs(intake), length(streams)) == ([], 1)


def test_a_batch_holds_a_bounded_number_of_bytes_but_at_least_one_entry(intake, streams, monkeypatch):
    monkeypatch.setattr(read_entries, "BYTES_MAX", 250)
    send(streams, *[usage(f"u{i}") for i in range(5)])  # each has about 100 bytes
    sizes = []
    intake.publish = lambda connection, posted, is_repeat: sizes.append(len(posted.movements["org_a"]))
    drain_all(intake)
    assert sizes == [3, 2]
    monkeypatch.setattr(read_entries, "BYTES_MAX", 1)
    send(streams, usage("u5"), usage("u6"))
    drain_all(intake)
    assert sizes == [3, 2, 1, 1]
    assert refs(intake) == [f"u{i}" for i in range(7)]


def test_more_entries_than_one_step_of_the_script_are_read_in_order(intake, streams):
    send(streams, *[usage(f"u{i}") for i in range(250)])
    assert take_batch(intake, [SHARD]) is Outcome.POSTED
    assert refs(intake) == [f"u{i}" for i in range(250)]


def test_the_backlog_of_a_shard_has_its_length_its_ids_and_whether_its_key_is_broken(streams):
    streams.set(stream_of(0), "not a stream")
    first = streams.xadd(stream_of(1), {"event": "x"}, id="5000-7")
    last = streams.xadd(stream_of(1), {"event": "y"})
    broken, filled, empty = read_backlogs(streams, range(3))
    assert broken == Backlog(0, is_broken=True)
    assert filled == Backlog(1, 2, first.decode(), last.decode())
    assert empty == Backlog(2)
    assert (filled.age_s(65), filled.age_s(1), empty.age_s(65)) == (60, 0, 0)


def test_a_usage_is_as_old_as_its_entry_whatever_redis_clock_says(intake, streams, monkeypatch):
    started = datetime.now(UTC) - timedelta(seconds=30)
    send(streams, grant("g", effective_at=started.isoformat()))
    drain_all(intake)
    behind_s = streams.time()[0] - 600  # by a clock that is ten minutes behind
    monkeypatch.setattr(batch, "measure_skew", lambda now, _: measure_skew(now, (behind_s, 0)))
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u"))}, id=f"{behind_s * 1000}-0")
    age_offsets(intake, "2 seconds")
    drain_all(intake)
    assert kinds_of(intake) == ["allot", "consume"]


def kinds_of(intake):
    rows = intake.connection.execute("SELECT kind FROM movements ORDER BY org_no, position")
    return [str(KIND_OF_LETTER[kind]) for (kind,) in rows]


@pytest.mark.parametrize(("redis_s", "skew_s"), [(1000, 600), (1599.5, 0), (1600.9, 0), (2200, -600)])
def test_the_clocks_of_redis_and_postgres_may_differ_by_a_second_before_times_are_corrected(redis_s, skew_s):
    now = datetime.fromtimestamp(1600, UTC)
    time = (int(redis_s), int(redis_s % 1 * 1e6))
    assert measure_skew(now, time) == timedelta(seconds=skew_s)
