"""The history of an organisation is imported whole, under the clock of its events, or not at all."""

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from feeds.database import begin, connect
from feeds.schema import check_ledger
from tests.histories import HISTORIES, NAMES, organisation, terms
from tests.integration.command_line import run, run_json
from tests.integration.test_ledger import entry, movements
from tests.integration.warm_feeds import warm
from tests.servers import CHECKOUT
from tests.unit.test_posting_laws import grants, revokes, usages
from worker.events import EventRefused
from worker.intake import histories
from worker.intake.histories import Import, import_histories, locked
from worker.ledger import history as ledger_history
from worker.ledger import read
from worker.ledger.dated_events import parse_dated_event
from worker.ledger.history import Line, post_whole
from worker.ledger.posting import post, settle
from worker.ledger.write import post_entries
from worker.migrations import roles
from worker.settings import WorkerSettings

MARK = b"\xef\xbb\xbf"
GRANT = {"type": "grant", "org_id": "org_a", "grant_ref": "g", "credits": 10, "source": "plan"}
USAGE = {"type": "usage", "org_id": "org_a", "usage_ref": "u", "usage_kind": "ai_usage", "credits": 4}
REVOKE = {"type": "revoke", "org_id": "org_a", "grant_ref": "g"}
HAS_MOVEMENTS = (
    "has_movements: it has movements or grants already, and a history can only be its first."
    " It may have been imported before"
)


def on(day, event=None, **fields):
    """Return an event that is posted on a day of May 2020."""
    return (event or USAGE) | {"at": f"2020-05-{day:02}T10:00:00Z"} | fields


def lines_of(*events):
    return "".join(f"{json.dumps(event)}\n" for event in events).encode()


@pytest.fixture
def connection(environment):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


@pytest.fixture
def job(connection):
    """Give an import that collects what it reports, and publishes nothing."""
    reported = []
    ledger = check_ledger(connection, WorkerSettings())
    job = Import(connection, ledger, lambda *_: None, lambda org_id, line: reported.append((org_id, line)))
    return job, reported


def import_events(job, events):
    """Import events, numbered as lines of a file."""
    rows = [(event["org_id"], number, json.dumps(event).encode()) for number, event in enumerate(events, 1)]
    import_histories(job, sorted(rows))


def count_movements(connection):
    return dict(
        connection.execute(
            "SELECT org_id, count(position) FROM organisations LEFT JOIN movements USING (org_no) GROUP BY 1"
        )
    )


# --- what a history becomes


def dated(history, *, dead):
    """Return the events of a history, each at the time of its step; those that were refused only if `dead`."""
    steps = [step for step in history["steps"] if step["event"]["type"] != "settle" and (dead or "dead" not in step)]
    return [step["event"] | {"at": step["now"]} for step in steps]


def going_back(times):
    """Return the organisations whose times go back, given pairs of an organisation and a time."""
    return {a for (a, earlier), (b, later) in itertools.combinations(times, 2) if a == b and earlier > later}


@pytest.mark.parametrize("part_lines", [1, histories.PART_LINES])
@pytest.mark.parametrize("history", HISTORIES, ids=NAMES)
def test_a_history_causes_the_movements_of_its_steps(connection, job, monkeypatch, history, part_lines):
    job, reported = job
    job.ledger = job.ledger._replace(expiry_grace_s=history["expiry_grace_s"])
    nows = sorted(step["now"] for step in history["steps"])
    monkeypatch.setattr(histories, "PART_LINES", part_lines)
    monkeypatch.setitem(read.SQL, "read_clock", f"SELECT '{nows[-1]}'::timestamptz".encode())
    events = dated(history, dead=False)
    import_events(job, events)

    assert {org_id for org_id, _ in reported} == going_back((event["org_id"], event["at"]) for event in events)
    of_steps = [(step["event"]["org_id"], step["now"]) for step in history["steps"]]
    for org_id in dict(of_steps).keys() - going_back(of_steps):
        wanted = [
            movement for step in history["steps"] if step["event"]["org_id"] == org_id for movement in step["writes"]
        ]
        found = movements(connection, org_id)
        assert found[: len(wanted)] == wanted
        assert {movement["kind"] for movement in found[len(wanted) :]} <= {"allot", "expire"}


@pytest.mark.parametrize(
    "history", [h for h in HISTORIES if any("dead" in step for step in h["steps"])], ids=lambda h: h["name"]
)
def test_a_history_with_an_event_that_would_become_a_dead_letter_is_refused(connection, job, monkeypatch, history):
    job, reported = job
    monkeypatch.setitem(read.SQL, "read_clock", b"SELECT '2100-01-01'::timestamptz")
    import_events(job, dated(history, dead=True))

    first = {}
    for step in history["steps"]:
        if "dead" in step:
            first.setdefault(step["event"]["org_id"], step["dead"])
    assert {org_id: line.reason.code for org_id, line in reported} == first
    assert not set(first) & set(count_movements(connection))


START = datetime(2026, 6, 1, tzinfo=UTC)  # of the events that the strategies make
SHIFT = START - datetime(2020, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LAST_MINUTE = 200
org_numbers = itertools.count(1)


def move(event, minute, org_id):
    """Return an event of the strategies as it is in a history: in 2020, which is over on every clock."""
    fields = event.model_dump(exclude_none=True) | {"org_id": org_id, "at": START + minute * MINUTE}
    return {
        name: (value - SHIFT).isoformat() if isinstance(value, datetime) else value for name, value in fields.items()
    }


def post_minute_by_minute(org_id, events, grace_s):
    """Post events as if they arrived live while a schedule settles all the time. Returns the state, and a refusal's code."""
    state = organisation(org_id)
    lines = [parse_dated_event(json.dumps(event).encode(), ("ai_usage", "tm_usage")) for event in events]
    for minute in range(LAST_MINUTE):
        now = START - SHIFT + minute * MINUTE
        settle(state, terms(now, grace_s))
        for event in lines:
            if event.at == now:
                try:
                    post(event, state, terms(now, grace_s), now)
                except EventRefused as refused:
                    return state, refused.code
        settle(state, terms(now, grace_s))
    return state, None


COLUMNS = (
    "grant_no", "grant_ref", "remaining", "drawn", "expired", "revoked", "allot_position", "first_draw_position",
    "last_draw_position", "close_position", "open",
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(st.tuples(st.one_of(usages, usages, usages, grants, revokes), st.integers(0, 100)), max_size=30),
    grace_s=st.sampled_from([0, 600]),
    part_lines=st.sampled_from([1, 4, 2000]),
    read_at_once=st.sampled_from([1, 100]),
)
def test_an_import_equals_live_posting_with_a_schedule_that_is_never_late(
    connection, job, events, grace_s, part_lines, read_at_once
):
    job, reported = job
    org_id = f"org_{next(org_numbers)}"
    history = [move(event, minute, org_id) for event, minute in sorted(events, key=lambda pair: pair[1])]
    state, code = post_minute_by_minute(org_id, history, grace_s)
    job.ledger = job.ledger._replace(expiry_grace_s=grace_s)
    reported.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "PART_LINES", part_lines)
        patch.setattr(read, "READ_AT_ONCE", read_at_once)
        import_events(job, history)

    assert [line.reason.code for _, line in reported] == ([code] if code else [])
    query = "SELECT created_at, usage_ref, credits, hash FROM movements JOIN organisations USING (org_no) WHERE org_id = %s ORDER BY position"
    found = connection.execute(query, [org_id]).fetchall()
    wanted = [] if code else [(m.created_at, m.usage_ref, m.credits, m.hash) for m in state.movements]
    assert found == wanted
    query = (
        f"SELECT {', '.join(COLUMNS)} FROM grants JOIN organisations USING (org_no) WHERE org_id = %s ORDER BY grant_no"
    )
    stored = connection.execute(query, [org_id]).fetchall()
    known = sorted(state.grants.values(), key=lambda grant: grant.grant_no)
    assert stored == ([] if code else [tuple(getattr(grant, name) for name in COLUMNS) for grant in known])


def test_every_imported_ledger_is_verified(environment):
    lines = []
    for n in range(3):
        org = {"org_id": f"org_{n}"}
        lines += [
            on(1, GRANT, expires_at="2020-05-04T00:00:00Z", labels={"order": "7"}, **org),
            on(2, **org, labels={"user": "ann"}),
            on(3, GRANT, grant_ref="later", effective_at="2020-05-05T00:00:00Z", **org),
            on(6, usage_ref="v", credits=20, **org),
            on(7, GRANT, grant_ref="future", effective_at="2100-01-01T00:00:00Z", **org),
        ]
    mixed = sorted(lines, key=lambda line: line["at"])

    assert run_json("import", "-", stdin=lines_of(*mixed)) == {
        "organisations": 3, "events": 15, "movements": 18, "refused": 0, "committed": True,
    }  # fmt: skip
    assert run_json("verify")["findings"] == []
    items = run_json("feed", "org_2")["items"]
    assert [(item["kind"], item["credits"], item["created_at"]) for item in reversed(items)] == [
        ("allot", 10, "2020-05-01T10:00:00Z"),
        ("consume", -4, "2020-05-02T10:00:00Z"),
        ("expire", -6, "2020-05-04T00:00:00Z"),
        ("allot", 10, "2020-05-05T00:00:00Z"),
        ("consume", -10, "2020-05-06T10:00:00Z"),
        ("overflow", -10, "2020-05-06T10:00:00Z"),
    ]


def test_live_events_go_on_where_the_history_ends(environment):
    run("import", "-", stdin=lines_of(on(1, GRANT), on(2)))
    run("usage", "org_a", "ai_usage", "4", "--ref", "u")
    run("usage", "org_a", "ai_usage", "9", "--ref", "new")
    assert run_json("drain") == {"posted": 2, "buried": 0}

    assert [item["credits"] for item in run_json("feed", "org_a")["items"]] == [-3, -6, -4, 10]
    assert run_json("verify")["findings"] == []


# --- what is refused


@pytest.mark.parametrize(
    ("events", "reported"),
    [
        ([on(1), on(2, credits=5.5)], "line 2: org_a: invalid_event: credits: must be a whole number, written like 5"),
        ([USAGE], "line 1: org_a: invalid_event: at: Field required"),
        ([on(1, at="2020-05-01T10:00:00")], "line 1: org_a: invalid_event: at: must be an RFC 3339 time with an offset"),
        ([on(1, at=1588327200)], "line 1: org_a: invalid_event: at: must be an RFC 3339 string with an offset"),
        ([on(1, at="2101-01-01T00:00:00Z")], "line 1: org_a: invalid_event: at: must not be later than now"),
        ([on(2), on(1, usage_ref="v")], "line 2: org_a: invalid_event: at: must not be earlier than the organisation's"),
        ([on(1, usage_kind="other")], "line 1: org_a: invalid_event: usage_kind: must be one of ai_usage, tm_usage"),
        ([on(1, more=1)], "line 1: org_a: invalid_event: more: Extra inputs are not permitted"),
        ([on(1, {"type": "settle", "org_id": "org_a"})], "line 1: org_a: invalid_event: type: must be one of usage, grant, revoke"),
        ([on(1, occurred_at="2020-05-01T10:05:01Z")], "line 1: org_a: occurred_in_future: occurred_at is more than 300 s"),
        ([on(1), on(2, credits=5)], "line 2: org_a: conflict: another usage has this usage_ref"),
        ([on(1, REVOKE), on(2, GRANT)], "line 1: org_a: unknown_grant: no grant with this grant_ref has been posted"),
        ([on(1, credits=10**12, usage_ref=str(n)) for n in range(9008)], "line 9008: org_a: unpostable: a sum of"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("part_lines", [1, histories.PART_LINES])
def test_a_bad_line_refuses_its_organisation_and_the_others_are_imported(
    environment, connection, monkeypatch, events, reported, part_lines
):
    monkeypatch.setattr(histories, "PART_LINES", part_lines if len(events) < 100 else histories.PART_LINES)
    others = [on(1, org_id="org_0"), on(1, org_id="org_b")]
    result = run("import", "-", stdin=lines_of(*events, *others), code=1)

    assert result.stderr.startswith(reported)
    assert result.stderr.count("\n") == 1
    assert result.stdout == "2 organisations imported: 2 events, 2 movements. 1 refused.\n"
    assert count_movements(connection) == {"org_0": 1, "org_b": 1}


def test_every_bad_line_of_an_organisation_is_reported_up_to_a_limit(environment, connection):
    bad = [on(1, credits=-1) for _ in range(histories.REPORTED_MAX + 50)]
    result = run("import", "-", stdin=lines_of(on(1), *bad), code=1)

    numbers = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert numbers == [f"line {n}" for n in range(2, histories.REPORTED_MAX + 2)]
    assert count_movements(connection) == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"type":"usage","org_id":"org_a"', "undecodable: "),
        (b"[]", "invalid_event: "),
        (b'{"type":"usage"}', "invalid_event: org_id: Field required"),
        (b'{"org_id":"a b"}', "invalid_event: "),
        (b'{"org_id":"org_a","x":"' + b"y" * 65536 + b'"}', "too_large: "),
        (b"[" * 60000 + b'"org_id"\\', "undecodable: "),
    ],
)
def test_a_line_that_names_no_organisation_stops_the_import(environment, connection, line, reason):
    result = run("import", "-", stdin=lines_of(on(1)) + line + b"\n" + lines_of(on(2, org_id="org_b")), code=1)

    first, last = result.stderr.splitlines()
    assert first.startswith(f"line 2: {reason}")
    assert last == "usage-feeds: 1 line names no organisation, and may be part of any history: nothing was imported."
    assert count_movements(connection) == {}


@pytest.mark.parametrize("second", [b'"org_id"', b'"org\\u005fid"'])
def test_a_line_that_names_two_organisations_refuses_both(environment, connection, second):
    line = json.dumps(on(1)).encode().replace(b"{", b'{%s:"org_b",' % second, 1)
    stdin = line + b"\n" + lines_of(on(1, org_id="org_b"), on(1, org_id="org_c"))

    result = run("import", "-", stdin=stdin, code=1)
    assert result.stderr == "".join(
        f"line 1: {org_id}: invalid_event: org_id: is given 2 times\n" for org_id in ("org_a", "org_b")
    )
    assert count_movements(connection) == {"org_c": 1}


def test_a_field_that_is_given_twice_is_refused_even_if_it_is_at(environment):
    line = json.dumps(on(1)).encode().replace(b"{", b'{"at":"2020-05-01T10:00:00Z",', 1)

    result = run("import", "-", stdin=line, code=1)
    assert result.stderr == "line 1: org_a: invalid_event: at: is given 2 times\n"


def test_a_repeat_refuses_what_was_imported_and_imports_the_rest(environment, connection):
    first = lines_of(on(1), on(1, GRANT, org_id="org_b", effective_at="2100-01-01T00:00:00Z"))
    run("import", "-", stdin=first)
    result = run("import", "-", stdin=first + lines_of(on(1, org_id="org_c")), code=1)

    assert result.stderr == f"org_a: {HAS_MOVEMENTS}\norg_b: {HAS_MOVEMENTS}\n"
    assert result.stdout == "1 organisation imported: 1 event, 1 movement. 2 refused.\n"
    assert count_movements(connection) == {"org_a": 1, "org_b": 0, "org_c": 1}
    assert run_json("verify")["findings"] == []


def test_a_ref_that_a_history_repeats_is_posted_once(environment, connection, monkeypatch):
    monkeypatch.setattr(histories, "PART_LINES", 2)
    run("import", "-", stdin=lines_of(on(1, GRANT), on(2), on(2), on(3, GRANT), on(4), on(5, credits=0, usage_ref="z")))

    assert count_movements(connection) == {"org_a": 2}


def test_what_postgres_refuses_for_one_organisation_is_imported_for_the_others(environment, connection):
    connection.execute("ALTER TABLE movements ADD CONSTRAINT of_the_host CHECK (usage_ref <> 'bad')")
    stdin = lines_of(on(1), on(1, usage_ref="bad", org_id="org_b"), on(1, org_id="org_c"))

    result = run("import", "-", stdin=stdin, code=1)
    assert result.stderr.startswith("org_b: unpostable: posting it failed: CheckViolation (SQLSTATE 23514)")
    assert count_movements(connection) == {"org_a": 1, "org_c": 1}


def test_an_error_of_the_surroundings_ends_the_import_in_one_line(environment, connection):
    connection.execute("ALTER TABLE movements RENAME COLUMN balance TO other")

    result = run("import", "-", stdin=lines_of(on(1)), code=2)
    assert result.stderr.count("\n") == 1
    assert "balance" in result.stderr


# --- files


def test_check_does_everything_and_commits_nothing(environment, connection, monkeypatch, tmp_path):
    monkeypatch.setattr(histories, "PART_LINES", 2)
    file = tmp_path / "history.jsonl"
    file.write_bytes(lines_of(on(1, GRANT), on(2), on(3), on(1, org_id="org_b"), on(1, REVOKE, org_id="org_c")))

    result = run("import", str(file), "--check", code=1)
    assert result.stdout == "2 organisations can be imported: 4 events, 3 movements. 1 refused.\n"
    assert result.stderr == "line 5: org_c: unknown_grant: no grant with this grant_ref has been posted\n"
    assert count_movements(connection) == {}
    assert run_json("import", str(file), code=1)["organisations"] == 2
    assert count_movements(connection) == {"org_a": 2, "org_b": 1}


@pytest.mark.parametrize("stdin", [b"", b"\n", MARK, MARK + b"\r\n\r\n"])
def test_an_empty_file_imports_nothing(environment, stdin):
    assert run("import", "-", stdin=stdin).stdout == "0 organisations imported: 0 events, 0 movements. 0 refused.\n"


def test_a_byte_order_mark_and_windows_line_ends_are_read(environment):
    stdin = MARK + b"\r\n" + lines_of(on(1), on(2)).replace(b"\n", b"\r\n")

    assert run_json("import", "-", stdin=stdin)["events"] == 2


def test_a_file_in_another_encoding_is_refused_in_one_line(environment):
    result = run("import", "-", stdin=lines_of(on(1)).decode().encode("utf-16"), code=2)

    assert result.stderr == "usage-feeds: The file cannot be read: it is UTF-16 or UTF-32: send JSON in UTF-8.\n"


def test_a_full_disk_is_reported_in_one_line(environment, monkeypatch):
    monkeypatch.setattr("worker.commands.history.add_lines", lambda sorter, _: sorter.execute("SELECT * FROM full"))

    result = run("import", "-", stdin=lines_of(on(1)), code=2)
    assert result.stderr.startswith("usage-feeds: The lines cannot be sorted on disk: no such table: full:")


def test_the_progress_is_shown_on_a_terminal_only(environment, tmp_path):
    file = tmp_path / "history.jsonl"
    file.write_bytes(lines_of(on(1)))
    command = [sys.executable, "-m", "worker", "import", str(file)]
    ours, theirs = pty.openpty()
    done = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=theirs, check=True)  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "reading" in shown
    assert "posting" in shown
    assert done.stdout == b"1 organisation imported: 1 event, 1 movement. 0 refused.\n"

    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=False)
    assert (again.returncode, again.stderr) == (1, f"org_a: {HAS_MOVEMENTS}\n".encode())


# --- beside readers, live events and death


def test_a_cached_empty_feed_is_dropped_by_the_import_or_by_its_repeat(environment, connection, monkeypatch):
    connection.execute("INSERT INTO organisations (org_id) VALUES ('org_a')")
    warm(environment, "org_a")
    drop = histories.drop_feeds
    monkeypatch.setattr(histories, "drop_feeds", lambda *_: None)  # as if it died after its commit
    run("import", "-", stdin=lines_of(on(1)))
    assert {finding["rule"] for finding in run_json("verify", code=1)["findings"]} == {"cached_count"}

    monkeypatch.setattr(histories, "drop_feeds", drop)
    run("import", "-", stdin=lines_of(on(1)), code=1)
    assert run_json("verify")["findings"] == []


def waits_for_a_lock(connection):
    query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return lambda: connection.execute(query).fetchall()


def test_an_import_waits_for_a_live_batch_and_then_refuses_its_organisation(environment, connection, wait_until):
    ledger = check_ledger(connection, WorkerSettings())
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as live:
        results = []
        stdin = lines_of(on(1), on(1, org_id="org_b"))
        thread = threading.Thread(target=lambda: results.append(run("import", "-", stdin=stdin, code=1)))
        with begin(live):
            post_entries(live, ledger, [entry(USAGE | {"usage_ref": "live"})])
            thread.start()
            wait_until(waits_for_a_lock(connection))
        thread.join()

    assert results[0].stderr == f"org_a: {HAS_MOVEMENTS}\n"
    assert [m["usage_ref"] for m in movements(connection, "org_a")] == ["live"]
    assert count_movements(connection) == {"org_a": 1, "org_b": 1}


def test_a_live_event_waits_for_an_import_and_is_posted_after_the_history(environment, connection, job, wait_until):
    job, _ = job
    lines = [Line(1, parse_dated_event(json.dumps(on(1)).encode(), job.ledger.usage_numbers))]

    def live():
        with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as live, begin(live):
            post_entries(live, job.ledger, [entry(USAGE | {"usage_ref": "live"})])

    thread = threading.Thread(target=live)
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as observer:
        with locked(job, ["org_a"]) as batch:
            post_whole(batch, {"org_a": lines})
            thread.start()
            wait_until(waits_for_a_lock(observer))
        thread.join()

    assert [m["usage_ref"] for m in movements(connection, "org_a")] == ["u", "live"]


def test_an_organisation_that_another_process_holds_for_long_is_refused(environment, connection, monkeypatch):
    monkeypatch.setitem(read.SQL, "bound_work", read.SQL["bound_work"].replace(b"'10s'", b"'200ms'"))
    connection.execute("INSERT INTO organisations (org_id) VALUES ('org_b')")
    with connection.transaction():
        connection.execute("SELECT FROM organisations FOR UPDATE")
        result = run("import", "-", stdin=lines_of(on(1), on(1, org_id="org_b"), on(1, org_id="org_c")), code=1)

    assert result.stderr == "org_b: unpostable: another process holds it, import it again\n"
    assert count_movements(connection) == {"org_a": 1, "org_b": 0, "org_c": 1}


def test_a_large_history_may_take_longer_than_a_batch(environment, connection, monkeypatch):
    limit = b"set_config('transaction_timeout', '%s', true)"
    monkeypatch.setitem(read.SQL, "bound_work", read.SQL["bound_work"].replace(limit % b"60s", limit % b"300ms"))
    monkeypatch.setattr(histories, "PART_LINES", 1)
    post_lines = ledger_history.post_lines

    def post_slowly(*arguments):
        time.sleep(0.25)
        post_lines(*arguments)

    monkeypatch.setattr(ledger_history, "post_lines", post_slowly)
    run("import", "-", stdin=lines_of(on(1), on(2, usage_ref="v"), on(3, usage_ref="w")))

    assert count_movements(connection) == {"org_a": 3}


@pytest.mark.parametrize("part_lines", [1, histories.PART_LINES])
def test_the_role_of_the_worker_may_import(environment, connection, monkeypatch, part_lines):
    roles.create_roles(connection)
    address = make_conninfo(environment["DATABASE_URL"], options="-c role=usage_feeds_worker")
    monkeypatch.setattr(histories, "PART_LINES", part_lines)
    monkeypatch.setattr("worker.commands.servers.connect_database", lambda _, within_s: connect(address, within_s))
    run("import", "-", stdin=lines_of(on(1, GRANT, labels={"a": "b"}), on(2), on(3, REVOKE)))

    assert count_movements(connection) == {"org_a": 3}


def test_a_killed_import_leaves_whole_organisations_and_can_be_repeated(
    environment, connection, processes, tmp_path, wait_until
):
    """The last organisation is a large one, whose transaction takes longest: it is killed in the middle."""
    sizes = {f"org_{n:02}": 500 for n in range(20)} | {"org_large": 20_000}
    lines = [
        on(1 + n % 20, usage_ref=f"u{n}", org_id=org_id) for org_id, size in sizes.items() for n in sorted(range(size), key=lambda n: n % 20)
    ]  # fmt: skip
    file = tmp_path / "history.jsonl"
    file.write_bytes(lines_of(*lines))
    importer = processes.command("import", str(file))
    wait_until(lambda: connection.execute("SELECT FROM movements LIMIT 1").fetchall(), within_s=30)
    time.sleep(0.1)
    os.killpg(importer.pid, signal.SIGKILL)
    importer.wait()

    left = count_movements(connection)
    assert left
    assert left == {org_id: sizes[org_id] for org_id in left}
    assert "org_large" not in left
    result = run_json("import", str(file), code=1)
    assert (result["organisations"], result["refused"]) == (len(sizes) - len(left), len(left))
    assert count_movements(connection) == sizes
    assert run_json("verify")["findings"] == []
