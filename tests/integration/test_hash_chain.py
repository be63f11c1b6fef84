"""The hashes of an organisation's movements form a chain that shows every later change."""

import json
from datetime import datetime, timedelta, timezone
from hashlib import sha256

import psycopg
import pytest
from click.testing import CliRunner

from feeds.movement import Kind, Movement
from tests.integration.test_verify import HISTORY, post
from tests.seed import MIXED, seed
from worker.__main__ import cli
from worker.audit.ledger import NotedHash, audit_ledger
from worker.ledger.hash_chain import hashed_content, initial_hash, next_hash


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        for org_id in ("org_a", "org_b"):
            post(connection, org_id, HISTORY)
        yield connection


def rules(audit):
    return {finding.rule for finding in audit.findings}


def rewrite(connection, *statements):
    """Change the ledger as its owner can, with the triggers disabled."""
    connection.execute("ALTER TABLE movements DISABLE TRIGGER movements_are_final")
    for statement in statements:
        connection.execute(statement)
    connection.execute("ALTER TABLE movements ENABLE TRIGGER movements_are_final")


MOVEMENT = Movement(
    kind=Kind.CONSUME,
    credits=-10,
    usage_kind="ai_usage",
    usage_ref="u1",
    created_at=datetime(2026, 6, 1, 12, tzinfo=timezone(timedelta(hours=2))),
    ordinals={0: 7, 2: 3, 6: 3, 7: 3},
    balance=90,
    total=-35,
    draws=((1, 4), (2, 6)),
    labels='{"seat":"9 b"}',
)


def test_the_hashed_content_is_what_its_docstring_says():
    assert hashed_content(MOVEMENT) == (
        b"7 c -10 90 -35 ai_usage u1 2026-06-01T10:00:00.000000Z 1:4,2:6 " + b'{"seat":"9 b"}'
    )
    allot = MOVEMENT._replace(kind=Kind.ALLOT, credits=10, usage_kind=None, draws=(), labels=None)
    assert hashed_content(allot) == b"7 a 10 90 -35 - u1 2026-06-01T10:00:00.000000Z - -"
    assert (
        next_hash(initial_hash("org_a"), MOVEMENT)
        == sha256(sha256(b"org_a").digest() + hashed_content(MOVEMENT)).digest()
    )


def test_the_hashes_can_be_recomputed_with_nothing_but_sha256(connection):
    rows = connection.execute(
        "SELECT concat_ws(' ', position, kind, credits, balance, total, COALESCE(usage_kind, '-'), usage_ref,"
        " to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), COALESCE(draws, '-'),"
        " COALESCE(labels, '-')),"
        " hash FROM movements JOIN organisations USING (org_no) LEFT JOIN usage_kinds USING (usage_number)"
        " LEFT JOIN movement_labels USING (org_no, position)"
        " WHERE org_id = 'org_a' ORDER BY position"
    ).fetchall()
    computed = sha256(b"org_a").digest()
    for content, stored in rows:
        computed = sha256(computed + content.encode()).digest()
        assert stored == computed
    assert len(rows) == 15
    assert audit_ledger(connection, "org_a").newest == NotedHash(15, computed.hex())


def test_two_organisations_with_the_same_events_have_different_hashes(connection):
    assert audit_ledger(connection, "org_a").newest.hash != audit_ledger(connection, "org_b").newest.hash


def test_the_chain_continues_over_batches_and_a_repeat_adds_nothing(connection):
    before = audit_ledger(connection, "org_a").newest
    post(connection, "org_a", HISTORY, first=100)
    assert audit_ledger(connection, "org_a").newest == before

    post(
        connection, "org_a", [{"type": "usage", "usage_ref": "u99", "usage_kind": "ai_usage", "credits": 1}], first=200
    )
    audit = audit_ledger(connection, "org_a", before)
    assert (audit.findings, audit.newest.position) == ([], 16)


def test_seeded_movements_are_hashed_like_posted_ones(connection):
    seed(connection, "org_seeded", MIXED)
    assert not rules(audit_ledger(connection, "org_seeded")) & {"hash", "last_hash"}


CHANGES = {
    "position": "position = position + 100",
    "balance": "balance = balance + 1",
    "total": "total = total + 1",
    "kind": "kind = 'o', draws = NULL",
    "credits": "credits = credits - 1",
    "usage kind": "usage_number = 1 - usage_number, usage_ordinal = 99, kind_usage_ordinal = 99",
    "ref": "usage_ref = 'moved'",
    "time": "created_at = created_at + interval '1 microsecond'",
    "draws": "draws = regexp_replace(draws, '^[0-9]+', '9')",
    "hash": "hash = sha256(hash)",
}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE movement_labels SET labels = '{}'",
        "DELETE FROM movement_labels",
        "INSERT INTO movement_labels (org_no, position, labels) SELECT org_no, 6, '{}' FROM movements LIMIT 1",
    ],
)
def test_a_change_of_labels_breaks_the_chain(connection, change):
    connection.execute("ALTER TABLE movement_labels DISABLE TRIGGER labels_are_final")
    connection.execute(change)
    assert "hash" in rules(audit_ledger(connection))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_any_field_breaks_the_chain(connection, change):
    rewrite(
        connection,
        "DROP INDEX movements_by_kind, movements_by_kind_and_usage_kind",
        f"UPDATE movements SET {change} WHERE usage_ref = 'u3'"
        " AND org_no = (SELECT org_no FROM organisations WHERE org_id = 'org_a')",
    )
    assert "hash" in rules(audit_ledger(connection, "org_a"))
    assert audit_ledger(connection, "org_b").findings == []


def test_a_deleted_movement_breaks_the_chain(connection):
    rewrite(connection, "DELETE FROM movements WHERE usage_ref = 'u3'")
    assert "hash" in rules(audit_ledger(connection, "org_a"))


def test_a_deleted_newest_movement_shows_in_the_organisations_hash(connection):
    rewrite(connection, "DELETE FROM movements WHERE position = 15")
    assert "last_hash" in rules(audit_ledger(connection, "org_a"))


def test_a_completely_rewritten_history_differs_from_a_noted_hash(connection):
    early, newest = (audit_ledger(connection, "org_a").newest for _ in range(2))
    [(second,)] = connection.execute(
        "SELECT encode(hash, 'hex') FROM movements JOIN organisations USING (org_no)"
        " WHERE org_id = 'org_a' AND position = 2"
    )
    rewrite_all_from(connection, "org_a", 3)

    assert audit_ledger(connection, "org_a").findings == []
    assert audit_ledger(connection, "org_a", NotedHash(2, second)).findings == []
    [finding] = audit_ledger(connection, "org_a", newest).findings
    assert finding[:4] == ("org_a", "noted_hash", "position 15", newest.hash)
    [finding] = audit_ledger(connection, "org_a", NotedHash(99, early.hash)).findings
    assert finding.found == "no such movement"


def rewrite_all_from(connection, org_id, position):
    """Change the time of every movement from a position on, and recompute all hashes, as a careful forger would."""
    [(org_no,)] = connection.execute("SELECT org_no FROM organisations WHERE org_id = %s", [org_id])
    rewrite(
        connection,
        f"UPDATE movements SET created_at = created_at + interval '1 hour' WHERE org_no = {org_no}"
        f" AND position >= {position}",
        f"UPDATE organisations SET last_created_at = last_created_at + interval '1 hour' WHERE org_no = {org_no}",
        f"""DO $$
        DECLARE previous bytea; movement record;
        BEGIN
            FOR movement IN SELECT * FROM movements LEFT JOIN usage_kinds USING (usage_number)
                LEFT JOIN movement_labels USING (org_no, position) WHERE org_no = {org_no} ORDER BY position
            LOOP
                previous := sha256(COALESCE(previous, sha256('{org_id}'::bytea)) || convert_to(concat_ws(
                    ' ', movement.position, movement.kind, movement.credits, movement.balance, movement.total,
                    COALESCE(movement.usage_kind, '-'), movement.usage_ref,
                    to_char(movement.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                    COALESCE(movement.draws, '-'), COALESCE(movement.labels, '-')), 'UTF8'));
                UPDATE movements SET hash = previous WHERE org_no = {org_no} AND position = movement.position;
            END LOOP;
            UPDATE organisations SET last_hash = previous WHERE org_no = {org_no};
        END $$""",
    )


def verify(*arguments):
    return CliRunner().invoke(cli, ["verify", *arguments], prog_name="usage-feeds")


def test_verify_prints_a_hash_to_note_and_checks_it_later(environment, connection):
    shown = json.loads(verify("org_a", "--json").output)["newest"]
    assert shown["position"] == 15
    assert f"newest movement: position 15, hash {shown['hash']}" in verify("org_a").output

    noted = ("org_a", "--from", "15", "--hash")
    assert verify(*noted, shown["hash"].upper()).exit_code == 0
    assert verify(*noted, "0" * 64).exit_code == 1
    assert verify("org_b", "--from", "15", "--hash", shown["hash"]).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [("--from", "1", "--hash", "0" * 64), ("org_a", "--from", "1"), ("org_a", "--hash", "0" * 64),
     ("org_a", "--from", "0", "--hash", "0" * 64), ("org_a", "--from", "1", "--hash", "0")],
)  # fmt: skip
def test_a_position_without_a_hash_or_the_reverse_is_wrong_usage(environment, arguments):
    assert verify(*arguments).exit_code == 2


def test_an_audit_of_all_organisations_has_no_newest_movement(connection):
    assert audit_ledger(connection).newest is None
