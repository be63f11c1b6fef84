"""A batch is posted through the database."""

import json
import time
from itertools import count

import psycopg
import pytest

from feeds.database import begin
from feeds.movement import KIND_OF_LETTER
from feeds.schema import check_ledger
from tests.histories import HISTORIES, NAMES
from worker.events import EVENT_BYTES
from worker.ledger import read, write
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries
from worker.settings import WorkerSettings

ids = count(1)


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def clock(connection, monkeypatch):
    """Replace the clock that posting reads; returns a function that sets the time."""
    monkeypatch.setitem(read.SQL, "read_clock", b"SELECT current_setting('clock.now')::timestamptz")
    return lambda now: connection.execute("SELECT set_config('clock.now', %s, false)", [now])


def entry(event, stream="events:{0}"):
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    return Entry(stream, f"{next(ids)}-0", raw)


def post_all(connection, *events, grace_s=0, again=False):
    ledger = check_ledger(connection, WorkerSettings())._replace(expiry_grace_s=grace_s)
    with begin(connection):
        return post_entries(connection, ledger, [entry(event) for event in events], again=again)


def read_pairs(draws):
    return [tuple(map(int, draw.split(":"))) for draw in draws.split(",")]


def movements(connection, org_id, after=0):
    """Return an organisation's movements above a position, as the histories write them."""
    refs = dict(
        connection.execute(
            "SELECT grant_no, grant_ref FROM grants JOIN organisations USING (org_no) WHERE org_id = %s", [org_id]
        )
    )
    rows = connection.execute(
        "SELECT kind, credits, usage_kind, usage_ref, draws FROM movements JOIN organisations USING (org_no)"
        " LEFT JOIN usage_kinds USING (usage_number) WHERE org_id = %s AND position > %s ORDER BY position",
        [org_id, after],
    )
    return [
        {"kind": KIND_OF_LETTER[kind].value, "credits": moved, "usage_kind": usage_kind, "usage_ref": ref}
        | ({"draws": [[refs[number], drawn] for number, drawn in read_pairs(draws)]} if draws else {})
        for kind, moved, usage_kind, ref, draws in rows
    ]


@pytest.mark.parametrize("read_at_once", [1, read.READ_AT_ONCE])
@pytest.mark.parametrize("history", HISTORIES, ids=NAMES)
def test_every_step_of_a_history_writes_its_movements(connection, clock, monkeypatch, history, read_at_once):
    monkeypatch.setattr(read, "READ_AT_ONCE", read_at_once)
    for step in history["steps"]:
        org_id = step["event"]["org_id"]
        before = len(movements(connection, org_id))
        clock(step["now"])
        posted = post_all(connection, step["event"], grace_s=history["expiry_grace_s"])
        assert movements(connection, org_id, before) == step["writes"]
        assert [refusal.reason.code for refusal in posted.refusals] == [code for code in [step.get("dead")] if code]
    for org_id, remaining in history["remaining"].items():
        rows = connection.execute(
            "SELECT grant_ref, remaining FROM grants JOIN organisations USING (org_no)"
            " WHERE org_id = %s AND remaining > 0",
            [org_id],
        )
        assert dict(rows.fetchall()) == remaining


@pytest.mark.parametrize("start", [None, "2026-06-02T00:00:00Z"])
def test_a_grant_that_is_due_and_that_the_batch_names_changes_once(connection, clock, start):
    ends = "2026-06-03T00:00:00Z"
    grant = {"type": "grant", "org_id": "org_a", "grant_ref": "g", "credits": 9, "source": "plan", "expires_at": ends}
    grant |= {"effective_at": start} if start else {}
    clock("2026-06-01T00:00:00Z")
    post_all(connection, grant)
    for now, kinds in (("2026-06-02T12:00:00Z", ["allot"]), ("2026-06-04T00:00:00Z", ["allot", "expire"])):
        clock(now)
        post_all(connection, grant, {"type": "settle", "org_id": "org_a"}, grant)
        assert [movement["kind"] for movement in movements(connection, "org_a")] == kinds


@pytest.mark.parametrize("name", ["NULL", "None", "null", "true", "..", "-"])
def test_ids_and_refs_that_are_words_of_sql_or_json_are_kept(connection, name):
    grant = {"type": "grant", "org_id": name, "grant_ref": name, "credits": 9, "source": "plan"}
    usage = {"type": "usage", "org_id": name, "usage_ref": name, "usage_kind": "ai_usage", "credits": 5}
    reason = "a \"reason\", \\ {NULL} 'and' more"
    revoke = {"type": "revoke", "org_id": name, "grant_ref": name, "reason": reason}
    assert not post_all(connection, grant, usage, usage, revoke).refusals
    assert not post_all(connection, usage, grant).movements

    rows = connection.execute("SELECT org_id, usage_ref, credits FROM movements JOIN organisations USING (org_no)")
    assert sorted(rows) == sorted([(name, name, 9), (name, name, -5), (name, name, -4)])
    assert connection.execute("SELECT grant_ref, revoke_reason FROM grants").fetchall() == [(name, reason)]


def test_the_two_equal_hours_at_the_end_of_summer_time_are_distinct(connection, clock):
    """With any time zone of Postgres: in Python, two times of one zone are equal if its clock shows the same."""
    connection.execute("SET timezone = 'Europe/Berlin'")
    grant = {"type": "grant", "org_id": "o", "grant_ref": "g", "credits": 100, "source": "plan"}
    usage = {"type": "usage", "org_id": "o", "usage_kind": "ai_usage", "credits": 1}

    clock("2026-10-25T00:00:00Z")
    post_all(connection, grant | {"expires_at": "2026-10-25T01:10:00Z"})
    clock("2026-10-25T00:45:00Z")
    post_all(connection, usage | {"usage_ref": "u1"})
    clock("2026-10-25T01:05:00Z")
    post_all(connection, usage | {"usage_ref": "u2"})

    found = connection.execute(
        "SELECT kind, to_char(created_at AT TIME ZONE 'UTC', 'HH24:MI') FROM movements ORDER BY position"
    )
    assert found.fetchall() == [("a", "00:00"), ("c", "00:45"), ("c", "01:05")]


@pytest.mark.parametrize("late", [1, 2])
def test_a_process_that_hangs_while_it_posts_loses_its_locks(connection, monkeypatch, late):
    monkeypatch.setattr(write, "WRITTEN_AT_ONCE", 1)
    monkeypatch.setitem(read.SQL, "bound_work", read.SQL["bound_work"].replace(b"'60s'", b"'300ms'"))
    calls, post = count(1), write.post

    def post_late(*arguments):
        if next(calls) == late:
            time.sleep(1)
        post(*arguments)

    monkeypatch.setattr(write, "post", post_late)
    usages = [
        {"type": "usage", "org_id": "o", "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1} for ref in "abc"
    ]
    if late > 1 and connection.info.server_version < 170000:  # such servers limit no transaction that is not idle
        assert len(post_all(connection, *usages).movements["o"]) == 3
    else:
        with pytest.raises(psycopg.OperationalError, match=r"terminat|closed the connection"):
            post_all(connection, *usages)


def test_a_cut_event_is_buried_with_its_true_size(connection):
    ledger = check_ledger(connection, WorkerSettings())
    cut = Entry("events:{0}", "1-0", b" " * (EVENT_BYTES + 1), 300_000_000)

    posted = write.post_entries(connection, ledger, [cut])

    assert posted.refusals[0].reason.message.endswith("this one has 300000000")
    rows = connection.execute("SELECT code, raw_bytes, length(raw) FROM dead_letters").fetchall()
    assert rows == [("too_large", 300_000_000, EVENT_BYTES)]


def test_a_grant_past_the_largest_exact_number_is_a_dead_letter_and_its_neighbours_are_posted(connection):
    def grant(ref, amount):
        fields = {"grant_ref": ref, "credits": amount, "source": "plan"}
        return {"type": "grant", "org_id": "org_a", **fields}

    most, rest = divmod(2**53 - 1, 10**12)
    for start in range(0, most, 1000):
        post_all(connection, *(grant(f"g{number}", 10**12) for number in range(start, min(start + 1000, most))))
    posted = post_all(connection, grant("fits", rest), grant("too_much", 1), {"type": "settle", "org_id": "org_a"})

    assert [(json.loads(refusal.entry.raw)["grant_ref"], refusal.reason.code) for refusal in posted.refusals] == [
        ("too_much", "unpostable")
    ]
    [(balance,)] = connection.execute("SELECT sum(credits) FROM movements").fetchall()
    assert balance == 2**53 - 1


def test_a_repeat_with_other_labels_is_no_conflict_and_the_first_labels_stay(connection):
    grant = {"type": "grant", "org_id": "org_a", "grant_ref": "g", "credits": 9, "source": "plan"}
    usage = {"type": "usage", "org_id": "org_a", "usage_ref": "u", "usage_kind": "ai_usage", "credits": 3}
    post_all(connection, grant | {"labels": {"order": "1"}}, usage | {"labels": {"user": "ann"}})
    again = post_all(connection, grant | {"labels": {"order": "2"}}, grant, usage, usage | {"labels": {}})

    assert not again.refusals
    found = connection.execute("SELECT DISTINCT labels FROM movement_labels ORDER BY 1").fetchall()
    assert found == [('{"order":"1"}',), ('{"user":"ann"}',)]
