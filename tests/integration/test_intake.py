"""From the streams into the ledger: leases, leftovers, deletes, wakes, and entries that cannot be posted."""

import json
from time import monotonic

import psycopg
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisAway

from feeds.schema import check_ledger
from worker.intake import batch, poison, read_entries
from worker.intake.backlog import Backlog, read_backlogs
from worker.intake.batch import Intake, Outcome, take_batch
from worker.intake.drain import drain, drain_all, leave
from worker.intake.poison import key_of
from worker.intake.streams import AWAKE, add, add_once, connect, place, shard_of, stream_of
from worker.settings import WorkerSettings


class Work(Intake):
    """An intake whose shows and wakes are written down."""

    def __init__(self, database_url, redis_url):
        self.shown, self.wakes = [], []
        connection = psycopg.connect(database_url, autocommit=True)
        ledger = check_ledger(connection, WorkerSettings())
        super().__init__(
            connection,
            connect(redis_url),
            ledger,
            lambda connection, posted, repeated: self.shown.append((posted, repeated)),
            lambda: self.wakes.append(1),
        )


@pytest.fixture
def make_work(database_url, redis_url):
    made = []

    def make():
        made.append(Work(database_url, redis_url))
        return made[-1]

    yield make
    for work in made:
        work.connection.close()
        work.streams.close()


@pytest.fixture
def work(make_work):
    return make_work()


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


def refs(work):
    return [ref for (ref,) in work.connection.execute("SELECT usage_ref FROM movements ORDER BY org_no, position")]


def dead(work):
    return work.connection.execute("SELECT code, fields FROM dead_letters ORDER BY dead_letter_id").fetchall()


def length(streams, org_id="org_a"):
    return streams.xlen(stream_of(shard_of(org_id, 8)))


SHARD = shard_of("org_a", 8)
STREAM = stream_of(SHARD)
OTHER = next(f"org_{i}" for i in range(99) if shard_of(f"org_{i}", 8) != SHARD)


def test_what_was_posted_is_shown_then_deleted(work, streams):
    send(streams, usage("u1"), usage("u2"))
    drain_all(work)
    assert refs(work) == ["u1", "u2"]
    assert length(streams) == 0
    [(posted, repeated)] = work.shown
    assert [movement.usage_ref for movement in posted.movements["org_a"]] == ["u1", "u2"]
    assert not repeated


def test_only_what_was_read_is_deleted_though_a_wipe_gave_newer_events_lower_ids(work, streams):
    send(streams, usage("u1"))
    work.publish = lambda connection, posted, repeated: wipe_and_add(streams)
    take_batch(work, [SHARD])
    assert [entry for entry, _ in streams.xrange(STREAM)] == [b"0-1"]


def wipe_and_add(streams):
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u2"))}, id="0-1")


def test_what_another_drain_has_just_posted_is_left_to_it(work, make_work, streams):
    send(streams, usage("u1"))
    entries = streams.xrange(STREAM)
    drain_all(work)
    streams.delete(STREAM)
    streams.xadd(STREAM, entries[0][1], id=entries[0][0])  # not yet deleted by its drain, says the offset
    other = make_work()
    assert take_batch(other, [SHARD]) is Outcome.LEFTOVERS
    assert length(streams) == 1
    assert other.shown == []


def test_what_a_dead_drain_has_posted_is_taken_after_a_second_and_its_feeds_are_dropped(work, make_work, streams):
    send(streams, usage("u1"))
    work.publish = die
    with pytest.raises(DeathError):
        drain_all(work)
    other = make_work()
    assert take_batch(other, [SHARD]) is Outcome.LEFTOVERS
    age_offsets(work, "1.1 seconds")
    assert take_batch(other, [SHARD]) is Outcome.POSTED
    assert refs(work) == ["u1"]
    assert length(streams) == 0
    [(posted, repeated)] = other.shown
    assert repeated
    assert posted.org_ids == {"org_a"}
    assert posted.movements == {}


class DeathError(Exception):
    pass


def die(connection, posted, repeated):
    raise DeathError


def age_offsets(work, interval):
    work.connection.execute("UPDATE stream_offsets SET moved_at = moved_at - %s::interval", [interval])


def test_an_offset_from_the_future_leaves_nothing_alone(work, make_work, streams):
    send(streams, usage("u1"))
    drain_all(work)
    age_offsets(work, "-1 hour")
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u2"))}, id="1-1")
    assert take_batch(make_work(), [SHARD]) is Outcome.POSTED
    assert refs(work) == ["u1", "u2"]


def test_events_with_ids_below_the_offset_are_posted_within_its_second(work, streams):
    send(streams, usage("u1"))
    drain_all(work)
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u2"))}, id="1-1")
    started = monotonic()
    drain_all(work)
    assert refs(work) == ["u1", "u2"]
    assert monotonic() - started < 3


def test_a_shard_that_another_drain_holds_makes_this_one_surplus_and_silent(work, make_work, streams):
    send(streams, usage("u1"))
    streams.set(AWAKE, "somebody")
    other = make_work()
    with work.connection.transaction():
        batch.lock_offsets(work, [SHARD])
        drain(other, until=monotonic() + 5)
    assert streams.get(AWAKE) == b"somebody"
    assert (other.wakes, other.shown, length(streams)) == ([], [], 1)


def test_a_drain_that_meets_only_leftovers_waits_out_its_life_without_spinning(work, make_work, streams):
    send(streams, usage("u1"))
    work.publish = die
    with pytest.raises(DeathError):
        drain_all(work)
    work.connection.execute("UPDATE stream_offsets SET moved_at = moved_at + interval '0.4 seconds'")
    streams.config_resetstat()
    started = monotonic()
    drain(make_work(), until=monotonic() + 0.5)
    assert monotonic() - started >= 0.5
    assert streams.info("commandstats")["cmdstat_xread"]["calls"] <= 5


def test_a_leaving_drain_gives_up_its_key_and_wakes_a_successor_only_if_something_waits(work, streams):
    send(streams, usage("u1"))
    drain(work, until=monotonic() + 0.1)
    assert refs(work) == ["u1"]
    assert streams.get(AWAKE) is None
    assert work.wakes == []
    work.publish = lambda connection, posted, repeated: send(streams, usage("u3", OTHER))
    send(streams, usage("u2"))
    streams.set(AWAKE, work.name)
    take_batch(work, [SHARD])
    leave(work, range(8))
    assert work.wakes == [1]
    assert streams.get(AWAKE) == b"successor"


def test_a_leaving_drain_leaves_the_key_of_another(work, streams):
    streams.set(AWAKE, "another")
    send(streams, usage("u1"))
    streams.set(AWAKE, "another")
    leave(work, range(8))
    assert streams.get(AWAKE) == b"another"
    assert work.wakes == []


def test_when_it_is_quiet_one_batch_takes_every_shard(work, streams):
    send(streams, *[usage("u", f"org_{i}") for i in range(40)])
    assert take_batch(work, list(range(8))) is Outcome.POSTED
    assert len(refs(work)) == 40


def test_under_a_backlog_a_batch_takes_one_shard_and_leaves_the_others_to_other_drains(work, make_work, streams):
    first, second = "org_a", OTHER
    send(streams, *[usage(f"u{i}", org_id) for org_id in (first, second) for i in range(600)])
    other = make_work()
    with work.connection.transaction():
        leases = batch.lease(work, batch.find_waiting(work, list(range(8))))
        assert len(leases) == 1
        assert take_batch(other, [SHARD, shard_of(OTHER, 8)]) is Outcome.POSTED
    assert len(refs(work)) == 600


def test_a_batch_takes_no_more_of_a_shard_than_its_bound(work, streams, monkeypatch):
    monkeypatch.setattr(poison, "BATCH_MAX", 3)
    send(streams, *[usage(f"u{i}") for i in range(5)])
    assert take_batch(work, [SHARD]) is Outcome.POSTED
    assert refs(work) == ["u0", "u1", "u2"]


def test_a_busy_shard_does_not_starve_the_others(work, streams):
    send(streams, *[usage(f"u{i}") for i in range(3000)], usage("quiet", OTHER))
    batches = 0
    while "quiet" not in refs(work):
        take_batch(work, [SHARD, shard_of(OTHER, 8)])
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
def test_a_bad_event_is_buried_with_its_reason_and_its_neighbours_post(work, streams, raw, code):
    send(streams, usage("before"))
    streams.xadd(STREAM, {"event": raw})
    send(streams, usage("after"))
    drain_all(work)
    assert refs(work) == ["before", "after"]
    [(found, fields)] = dead(work)
    assert found == code
    assert bool(fields) == (code == "invalid_event")
    assert length(streams) == 0


def test_an_entry_without_the_field_event_is_buried_and_other_fields_are_ignored(work, streams):
    streams.xadd(STREAM, {"other": "x"})
    streams.xadd(STREAM, {"event": json.dumps(usage("u")), "other": "x"})
    drain_all(work)
    assert refs(work) == ["u"]
    assert [code for code, _ in dead(work)] == ["undecodable"]


def test_an_event_in_a_shard_that_is_not_its_own_is_posted_all_the_same(work, streams):
    streams.xadd(stream_of(shard_of(OTHER, 8)), {"event": json.dumps(usage("u"))})
    drain_all(work)
    assert refs(work) == ["u"]


def refuse_ref(work, ref, errcode="P0001"):
    work.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF new.usage_ref = '{ref}' THEN RAISE EXCEPTION 'no' USING ERRCODE = '{errcode}'; END IF;"
        " RETURN new; END $$"
    )
    work.connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON movements FOR EACH ROW EXECUTE FUNCTION refuse()")


def test_what_the_database_refuses_is_found_by_halving_and_buried_alone(work, streams):
    refuse_ref(work, "u33")
    send(streams, *[usage(f"u{i}") for i in range(100)])
    drain_all(work)
    assert refs(work) == [f"u{i}" for i in range(100) if i != 33]
    assert [code for code, _ in dead(work)] == ["unpostable"]


def test_a_grant_that_the_database_refuses_is_buried_alone_too(work, streams):
    work.connection.execute("ALTER TABLE grants ADD CHECK (priority <> 7)")
    send(streams, grant("g1"), grant("g2", priority=7), usage("u"), grant("g3"))
    drain_all(work)
    assert refs(work) == ["g1", "u", "g3"]
    assert [code for code, _ in dead(work)] == ["unpostable"]


def test_a_drain_that_cannot_show_what_it_posted_counts_as_no_death(work, streams):
    send(streams, usage("u"))
    work.publish = die
    for _ in range(5):
        age_offsets(work, "2 seconds")
        with pytest.raises(DeathError):
            take_batch(work, [SHARD])
    assert (refs(work), length(streams)) == (["u"], 1)
    assert streams.hget(key_of(SHARD), "deaths") in {None, b"0"}


@pytest.mark.parametrize("errcode", ["08006", "40001", "40P01", "53100", "57014", "25006", "42501", "55P03"])
def test_what_is_the_servers_fault_is_never_buried_and_counts_as_no_death(work, streams, errcode):
    refuse_ref(work, "u1", errcode)
    send(streams, usage("u0"), usage("u1"))
    for _ in range(4):
        with pytest.raises(psycopg.Error):
            take_batch(work, [SHARD])
    assert (refs(work), dead(work), length(streams)) == ([], [], 2)
    assert streams.hget(key_of(SHARD), "deaths") in {None, b"0"}
    work.connection.execute("DROP TRIGGER refuse ON movements")
    drain_all(work)
    assert refs(work) == ["u0", "u1"]


def test_a_buried_entry_is_not_tried_again_when_it_is_read_again(work, streams):
    events = [revoke("g"), grant("g")]
    send(streams, *events)
    entries = streams.xrange(STREAM)
    drain_all(work)
    streams.delete(STREAM)
    for entry_id, fields in entries:
        streams.xadd(STREAM, fields, id=entry_id)
    age_offsets(work, "2 seconds")
    drain_all(work)
    assert refs(work) == ["g"]
    assert work.connection.execute("SELECT remaining FROM grants").fetchone() == (10,)
    assert [code for code, _ in dead(work)] == ["unknown_grant"]


def test_a_new_event_that_bears_a_buried_ones_id_is_posted(work, streams):
    streams.xadd(STREAM, {"event": "{"}, id="7-1")
    drain_all(work)
    streams.delete(STREAM)
    streams.xadd(STREAM, {"event": json.dumps(usage("u"))}, id="7-1")
    drain_all(work)
    assert refs(work) == ["u"]


def test_a_delivery_that_comes_twice_is_added_once(work, streams):
    placed = [place(event, 8) for event in [revoke("g"), grant("g")]]
    assert add_once(streams, placed, "delivery")
    drain_all(work)
    assert not add_once(streams, placed, "delivery")
    drain_all(work)
    assert work.connection.execute("SELECT remaining FROM grants").fetchone() == (10,)


def test_the_same_ref_with_other_content_is_a_conflict_and_in_another_organisation_it_is_not(work, streams):
    send(streams, usage("u"), usage("u", credits=2), usage("u", OTHER, credits=2), usage("u"))
    drain_all(work)
    assert refs(work) == ["u", "u"]
    assert [code for code, _ in dead(work)] == ["conflict"]


def test_a_key_that_is_no_stream_and_the_largest_id_stop_no_other_shard(work, streams):
    last = "18446744073709551615-18446744073709551615"
    streams.set(STREAM, "no stream")
    streams.xadd(stream_of(shard_of(OTHER, 8)), {"event": json.dumps(usage("u", OTHER))}, id=last)
    drain_all(work)
    drain(work, until=monotonic() + 0.1)
    assert refs(work) == ["u"]


def test_a_full_redis_is_still_drained(work, streams, redis_url):
    send(streams, *[usage(f"u{i}") for i in range(5)])
    try:
        streams.config_set("maxmemory", "1")
        drain_all(work)
    finally:
        streams.config_set("maxmemory", "0")
    assert len(refs(work)) == 5
    assert length(streams) == 0


def test_redis_away_while_a_batch_is_read_leaves_everything_as_it_was(work, streams):
    send(streams, usage("u"))
    [waiting] = batch.find_waiting(work, [SHARD])
    work.streams = connect("redis://127.0.0.1:1")
    with pytest.raises(RedisAway), work.connection.transaction():
        batch.read(work, batch.lease(work, [waiting]), {SHARD: waiting})
    assert (refs(work), length(streams)) == ([], 1)


def test_a_batch_ends_after_so_many_bytes_but_holds_one_entry_at_least(work, streams, monkeypatch):
    monkeypatch.setattr(read_entries, "BYTES_MAX", 250)
    send(streams, *[usage(f"u{i}") for i in range(5)])  # of 100 bytes each
    sizes = []
    work.publish = lambda connection, posted, is_repeat: sizes.append(len(posted.movements["org_a"]))
    drain_all(work)
    assert sizes == [3, 2]
    monkeypatch.setattr(read_entries, "BYTES_MAX", 1)
    send(streams, usage("u5"), usage("u6"))
    drain_all(work)
    assert sizes == [3, 2, 1, 1]
    assert refs(work) == [f"u{i}" for i in range(7)]


def test_more_entries_than_one_step_of_the_script_are_read_in_order(work, streams):
    send(streams, *[usage(f"u{i}") for i in range(250)])
    assert take_batch(work, [SHARD]) is Outcome.POSTED
    assert refs(work) == [f"u{i}" for i in range(250)]


def test_the_backlog_of_a_shard_tells_length_and_ids_and_whether_the_key_is_broken(streams):
    streams.set(stream_of(0), "not a stream")
    first = streams.xadd(stream_of(1), {"event": "x"}, id="5000-7")
    last = streams.xadd(stream_of(1), {"event": "y"})
    broken, filled, empty = read_backlogs(streams, range(3))
    assert broken == Backlog(0, is_broken=True)
    assert filled == Backlog(1, 2, first.decode(), last.decode())
    assert empty == Backlog(2)
    assert (filled.age_s(65), filled.age_s(1), empty.age_s(65)) == (60, 0, 0)
