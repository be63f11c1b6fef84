"""Verify reports every broken rule of the ledger and of the streams, and nothing else."""

import json
import re
import time
from threading import Event, Thread

import psycopg
import pytest
import redis

from feeds.schema import check_ledger
from worker.audit import ledger as audit_module
from worker.audit.ledger import EVERY_ORGANISATION, RULES, SQL, UnknownOrganisation, audit_ledger, divide
from worker.audit.streams import LARGEST_ID, audit_streams
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries
from worker.settings import WorkerSettings

ORG = "(SELECT org_no FROM organisations WHERE org_id = 'org_a')"
"""In SQL: the number of the organisation whose ledger is corrupted. `org_b` has the same events and stays correct."""

HISTORY = [
    {"type": "grant", "grant_ref": "first", "credits": 10, "source": "plan", "labels": {"order": "A 7"}},
    {"type": "grant", "grant_ref": "second", "credits": 20, "source": "promotion"},
    {"type": "grant", "grant_ref": "later", "credits": 5, "source": "plan", "effective_at": "2100-01-01T00:00:00Z"},
    {"type": "grant", "grant_ref": "lapsed", "credits": 3, "source": "plan", "expires_at": "2020-01-01T00:00:00Z"},
    {"type": "usage", "usage_ref": "u1", "usage_kind": "ai_usage", "credits": 4},
    {"type": "usage", "usage_ref": "u2", "usage_kind": "tm_usage", "credits": 8},
    {"type": "usage", "usage_ref": "u3", "usage_kind": "ai_usage", "credits": 6},
    {"type": "grant", "grant_ref": "taken", "credits": 7, "source": "plan", "priority": 90},
    {"type": "revoke", "grant_ref": "taken"},
    {
        "type": "usage",
        "usage_ref": "u4",
        "usage_kind": "ai_usage",
        "credits": 15,
        "labels": {"user": "Zoë", "a": "b c"},
    },
    {"type": "usage", "usage_ref": "u5", "usage_kind": "ai_usage", "credits": 2},
    {"type": "usage", "usage_ref": "u6", "usage_kind": "tm_usage", "credits": 2},
    {"type": "grant", "grant_ref": "open", "credits": 50, "source": "plan"},
    {"type": "usage", "usage_ref": "u7", "usage_kind": "tm_usage", "credits": 1},
]


def post(connection, org_id, events, first=1):
    ledger = check_ledger(connection, WorkerSettings())
    entries = [
        Entry("events:{0}", f"{number}-0", json.dumps(event | {"org_id": org_id}).encode())
        for number, event in enumerate(events, first)
    ]
    with connection.transaction():
        posted = post_entries(connection, ledger, entries)
    assert not posted.refusals


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        for org_id in ("org_a", "org_b"):
            post(connection, org_id, HISTORY)
        yield connection


def test_a_posted_ledger_breaks_no_rule(connection):
    audit = audit_ledger(connection)

    assert audit.findings == []
    assert (audit.organisations, audit.movements, audit.grants) == (2, 30, 12)


def test_the_history_has_every_kind_a_draw_from_two_grants_and_a_usage_that_overflows(connection):
    kinds = connection.execute("SELECT array_agg(DISTINCT kind ORDER BY kind)::text FROM movements").fetchall()
    draws = connection.execute("SELECT max(array_length(string_to_array(draws, ','), 1)) FROM movements").fetchall()
    split = connection.execute("SELECT count(*) FROM movements WHERE usage_ref = 'u4'").fetchall()

    assert (kinds, draws, split) == ([("{a,c,e,o,r}",)], [(2,)], [(4,)])


def corruption(*statements):
    return [statement.replace(":org", ORG) for statement in statements]


AT = "WHERE org_no = :org AND usage_ref ="
CORRUPTIONS = {
    "position": corruption(f"UPDATE movements SET position = position + 100 {AT} 'u7'"),
    "kind_ordinal": corruption(f"UPDATE movements SET kind_ordinal = kind_ordinal + 1 {AT} 'u7'"),
    "usage_ordinal": corruption(f"UPDATE movements SET usage_ordinal = usage_ordinal + 1 {AT} 'u7'"),
    "kind_usage_ordinal": corruption(f"UPDATE movements SET kind_usage_ordinal = kind_usage_ordinal + 1 {AT} 'u7'"),
    "created_at": corruption(f"UPDATE movements SET created_at = created_at - interval '1 hour' {AT} 'u3'"),
    "balance": corruption(f"UPDATE movements SET balance = balance + 1 {AT} 'u3'"),
    "total": corruption(f"UPDATE movements SET total = total + 1 {AT} 'u3'"),
    "overflow_follows_consume": corruption(
        f"UPDATE movements SET usage_ref = 'moved' {AT} 'u4' AND kind = 'o'",
        f"UPDATE movements SET usage_ref = 'u4' {AT} 'u5'",
    ),
    "draws": corruption(f"UPDATE movements SET draws = draws || '0' {AT} 'u3'"),
    "grant_is_known": corruption(f"UPDATE movements SET usage_ref = 'nobody' {AT} 'lapsed' AND kind = 'e'"),
    "grant_number": corruption("UPDATE grants SET grant_no = 99 WHERE org_no = :org AND grant_ref = 'later'"),
    "grant_sum": corruption(
        "ALTER TABLE grants DROP CONSTRAINT an_allotted_grant_adds_up",
        "UPDATE grants SET credits = credits + 1 WHERE org_no = :org AND grant_ref = 'open'",
    ),
    "grant_drawn": corruption(
        "ALTER TABLE grants DROP CONSTRAINT a_drawn_grant_has_draws, DROP CONSTRAINT an_allotted_grant_closes_at_a_movement",
        "UPDATE grants SET drawn = drawn - 1, remaining = remaining + 1 WHERE org_no = :org AND grant_ref = 'open'",
    ),
    "grant_expired": corruption(
        "ALTER TABLE grants DROP CONSTRAINT a_drawn_grant_has_draws, DROP CONSTRAINT an_allotted_grant_closes_at_a_movement",
        "UPDATE grants SET drawn = drawn + 1, expired = expired - 1 WHERE org_no = :org AND grant_ref = 'lapsed'",
    ),
    "grant_revoked": corruption(
        "ALTER TABLE grants DROP CONSTRAINT a_drawn_grant_has_draws, DROP CONSTRAINT an_allotted_grant_closes_at_a_movement",
        "UPDATE grants SET drawn = drawn + 1, revoked = revoked - 1 WHERE org_no = :org AND grant_ref = 'taken'",
    ),
    "grant_allot": corruption("UPDATE grants SET allot_position = 4 WHERE org_no = :org AND grant_ref = 'first'"),
    "grant_end": corruption(
        "ALTER TABLE grants DROP CONSTRAINT a_drawn_grant_has_draws, DROP CONSTRAINT an_allotted_grant_closes_at_a_movement",
        "UPDATE grants SET open = true WHERE org_no = :org AND grant_ref = 'taken'",
    ),
    "grant_order": corruption(
        f"UPDATE movements SET draws = regexp_replace(draws, '^[0-9]+', '6') {AT} 'u1'",
    ),
    "grant_positions": corruption(
        "UPDATE grants SET first_draw_position = last_draw_position WHERE org_no = :org AND grant_ref = 'first'"
    ),
    "grant_labels": corruption("UPDATE grants SET labels = '{}' WHERE org_no = :org AND grant_ref = 'second'"),
    "feed_total": corruption("UPDATE organisations SET totals[3] = totals[3] + 1 WHERE org_no = :org"),
    "pending": corruption("UPDATE organisations SET pending = 4 WHERE org_no = :org"),
    "labels": corruption("INSERT INTO movement_labels (org_no, position, labels) SELECT :org, 99, '{}'"),
    "count": corruption("UPDATE organisations SET counts[3] = counts[3] + 1 WHERE org_no = :org"),
    "remaining": corruption(
        "ALTER TABLE grants DROP CONSTRAINT a_drawn_grant_has_draws, DROP CONSTRAINT an_allotted_grant_closes_at_a_movement",
        "UPDATE grants SET drawn = drawn - 1, remaining = remaining + 1 WHERE org_no = :org AND grant_ref = 'open'",
    ),
    "grant_count": corruption("UPDATE organisations SET grants = grants + 1 WHERE org_no = :org"),
    "last_created_at": corruption("UPDATE organisations SET last_created_at = 'epoch' WHERE org_no = :org"),
    "organisation_is_known": corruption(
        "ALTER TABLE grants DROP CONSTRAINT grants_org_no_fkey",
        "DELETE FROM organisations WHERE org_no = :org",
    ),
    "hash": corruption(f"UPDATE movements SET hash = sha256(hash) {AT} 'u3'"),
    "last_hash": corruption("UPDATE organisations SET last_hash = NULL WHERE org_no = :org"),
    "stream_offsets": corruption("DELETE FROM stream_offsets WHERE shard = 3"),
}
SOLE = {
    "kind_ordinal",
    "usage_ordinal",
    "kind_usage_ordinal",
    "grant_number",
    "grant_positions",
    "grant_labels",
    "feed_total",
    "pending",
    "labels",
    "count",
    "grant_count",
    "last_created_at",
    "hash",
    "last_hash",
    "stream_offsets",
}
"""Rules whose corruption no other rule reports."""


@pytest.mark.parametrize("rule", CORRUPTIONS)
def test_a_broken_rule_is_reported_for_the_corrupted_organisation_only(connection, rule):
    connection.execute("ALTER TABLE movements DISABLE TRIGGER movements_are_final")
    for statement in CORRUPTIONS[rule]:
        connection.execute(statement)

    audit = audit_ledger(connection)

    assert rule in {finding.rule for finding in audit.findings}
    assert {finding.org_id for finding in audit.findings} <= {"org_a", None}
    assert all(finding.expected != finding.found for finding in audit.findings)
    if rule in SOLE:
        assert {finding.rule for finding in audit.findings} == {rule}


def test_every_rule_has_a_corruption_that_breaks_it():
    queries = b"".join(SQL[rule] for rule in [*RULES, "find_wrong_offsets"]).decode()
    reported = {*re.findall(r"'(\w+)' AS rule", queries), *re.findall(r"[(T]\s*'(\w+)',", queries)}

    assert reported == set(CORRUPTIONS)


def test_a_finding_names_place_and_values(connection):
    connection.execute("UPDATE organisations SET counts[1] = 99 WHERE org_id = 'org_b'")

    [finding] = audit_ledger(connection).findings

    assert finding == ("org_b", "count", "feed 0", "15", "99")


def test_one_organisation_can_be_checked_without_the_others(connection):
    connection.execute("UPDATE organisations SET grants = 99 WHERE org_id = 'org_b'")

    assert audit_ledger(connection, "org_a").findings == []
    assert [finding.rule for finding in audit_ledger(connection, "org_b").findings] == ["grant_count"]
    assert audit_ledger(connection, "org_b").organisations == 1


def test_an_unknown_organisation_cannot_be_checked(connection):
    with pytest.raises(UnknownOrganisation):
        audit_ledger(connection, "unknown")


def test_an_audit_is_exact_while_events_are_posted(connection, database_url, wait_until):
    stop = Event()

    def write():
        with psycopg.connect(database_url, autocommit=True) as writer:
            number = 0
            while not stop.is_set():
                number += 1
                post(
                    writer,
                    "org_a",
                    [
                        {"type": "grant", "grant_ref": f"g{number}", "credits": 3, "source": "plan"},
                        {"type": "usage", "usage_ref": f"more{number}", "usage_kind": "ai_usage", "credits": 5},
                    ],
                )

    writing = Thread(target=write)
    writing.start()
    try:
        audits = [audit_ledger(connection)]
        wait_until(lambda: audits.append(audit_ledger(connection)) or audits[-1].movements > audits[0].movements + 20)
    finally:
        stop.set()
        writing.join(timeout=10)

    assert all(audit.findings == [] for audit in audits)


def test_an_audit_leaves_the_connection_as_it_was(connection):
    audit_ledger(connection)

    connection.execute("UPDATE organisations SET grants = grants")
    assert connection.execute("SHOW work_mem").fetchall() != [("256MB",)]


@pytest.fixture
def streams(redis_url):
    with redis.Redis.from_url(redis_url) as streams:
        yield streams


def test_sound_streams_have_no_findings(streams):
    streams.xadd("events:{3}", {"event": "{}"})
    streams.set("events:awake", "x")

    assert audit_streams(streams, 8) == []


def test_a_key_that_is_not_a_stream_is_reported(streams):
    streams.set("events:{3}", "x")

    assert [finding[1:] for finding in audit_streams(streams, 8)] == [
        ("stream_is_a_stream", "events:{3}", "a stream", "a string")
    ]


@pytest.mark.parametrize("left", [2, 1, 0])
def test_a_stream_that_has_given_out_the_largest_id_is_reported_even_if_that_entry_is_deleted(streams, left):
    streams.xadd("events:{3}", {"event": "{}"}, id="1-1")
    streams.xadd("events:{3}", {"event": "{}"}, id=LARGEST_ID)
    for entry_id in [LARGEST_ID, "1-1"][: 2 - left]:
        streams.xdel("events:{3}", entry_id)

    assert [finding.rule for finding in audit_streams(streams, 8)] == ["stream_has_room"]


def test_an_audit_of_streams_transfers_no_entry(streams):
    streams.xadd("events:{3}", {"event": "x" * 1_000_000})
    streams.config_resetstat()

    assert audit_streams(streams, 8) == []
    assert streams.info("stats")["total_net_output_bytes"] < 100_000


def test_events_in_a_shard_that_the_ledger_does_not_have_are_reported(streams):
    streams.xadd("events:{8}", {"event": "{}"})

    assert [finding[1:] for finding in audit_streams(streams, 8)] == [
        ("stream_has_a_shard", "events:{8}", "no entries", "1 entries")
    ]


def test_several_connections_find_the_same_as_one(connection, database_url):
    connection.execute("ALTER TABLE movements DISABLE TRIGGER movements_are_final")
    connection.execute("UPDATE movements SET kind_ordinal = kind_ordinal + 100 WHERE position = 8")
    connection.execute("DELETE FROM stream_offsets WHERE shard = 3")
    connection.execute("INSERT INTO organisations (org_id) SELECT 'org_' || n FROM generate_series(1, 20) AS n")
    by_one = audit_ledger(connection)

    with psycopg.connect(database_url) as second, psycopg.connect(database_url) as third:
        by_three = audit_ledger(connection, others=[second, third])

    assert {finding.org_id for finding in by_one.findings} == {"org_a", "org_b", None}
    assert sorted(by_three.findings, key=str) == sorted(by_one.findings, key=str)


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_the_ranges_of_an_audit_hold_every_organisation_once(connection, parts):
    connection.execute(
        "INSERT INTO organisations (org_id, counts) SELECT 'o' || n, ARRAY[n] FROM generate_series(0, 9) AS n"
    )

    ranges = divide(connection, EVERY_ORGANISATION, parts)

    assert [part.first_org for part in ranges[1:]] == [part.last_org + 1 for part in ranges[:-1]]
    assert (ranges[0].first_org, ranges[-1].last_org) == EVERY_ORGANISATION
    assert parts == 1 or 2 <= len(ranges) <= parts


def test_one_connection_waits_for_the_other_despite_the_idle_limit_of_its_user(connection, database_url, monkeypatch):
    audited = psycopg.connect(database_url, autocommit=True, options="-c idle_in_transaction_session_timeout=200ms")
    check_range = audit_module.check_range

    def check_late(other, organisations, stopped):
        if other is not audited:
            time.sleep(0.6)
        return check_range(other, organisations, stopped)

    monkeypatch.setattr(audit_module, "check_range", check_late)
    with audited, psycopg.connect(database_url) as second:
        assert audit_ledger(audited, others=[second]).findings == []


def test_an_interrupted_audit_stops_on_every_connection(connection, database_url, monkeypatch):
    checked, begun = [], Event()

    def check_until_stopped(other, organisations, stopped):
        if other is connection:
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        checked.append(stopped.wait(10))
        return []

    monkeypatch.setattr(audit_module, "check_range", check_until_stopped)
    with psycopg.connect(database_url) as second, pytest.raises(KeyboardInterrupt):
        audit_ledger(connection, others=[second])

    assert checked == [True]
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
