"""Which findings follow from which facts?"""

import re
import textwrap
import time

import psycopg
import pytest

from feeds.addresses.redis import RedisAddress
from feeds.schema import SchemaBehind, SettingsDiffer
from worker.commands.doctor import format_finding
from worker.doctor import (
    celery_workers,
    clocks,
    database_rights,
    machine,
    pooler,
    postgres,
    rabbitmq,
    redis_keys,
    redis_rights,
    redis_server,
)
from worker.doctor.celery_workers import Worker
from worker.doctor.clocks import HERE, Reading
from worker.doctor.finding import Level, list_names, note
from worker.doctor.pooler import Backends
from worker.doctor.rounds import describe_unusable

SOUND_POSTGRES = postgres.Server(
    version=180001, encoding="UTF8", is_standby=False, is_synced=True, has_full_pages=True, is_vacuumed=True,
    connections=10, connections_max=97, shared_memory_type="posix", process_id=1, settings={},
)  # fmt: skip
SOUND_INFO = {
    "redis_version": "7.2.4", "role": "master", "cluster_enabled": 0, "connected_slaves": 0, "used_memory": 2**20,
    "maxmemory": 2**30, "maxmemory_policy": "noeviction", "aof_enabled": 1, "aof_last_write_status": "ok",
    "connected_clients": 5, "maxclients": 10_000, "run_id": "a", "master_replid": "b",
}  # fmt: skip
SOUND_ROLE = database_rights.Role("poster", False, False, True, [], [])


def levels(findings):
    """Return the levels of the findings that need attention, by name."""
    return {finding.name: str(finding.level) for finding in findings if finding.level is not Level.OK}


def is_explained(finding):
    """Tell whether a finding says what, why and what to do in whole sentences, or only what if all is well."""
    texts = (finding.what, finding.why, finding.to_do)
    expected = 1 if finding.level is Level.OK else 3
    return [bool(re.fullmatch(r"[A-Z`\d/ ].*\.", text)) for text in texts].count(True) >= expected - 1 and all(
        texts[:expected]
    )


# --- Postgres


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"version": 140012}, {"version": "mend"}),
        ({"is_standby": True}, {"standby": "mend"}),
        ({"is_synced": False}, {"fsync": "mend"}),
        ({"has_full_pages": False}, {"full_page_writes": "mend"}),
        ({"is_vacuumed": False}, {"autovacuum": "note"}),
        ({"connections": 90}, {"connections": "note"}),
        ({"settings": {"DateStyle": "SQL, DMY"}}, {"settings": "note"}),
        ({"settings": {"statement_timeout": "60s", "log_statement": "all"}}, {}),
    ],
)
def test_each_unsafe_fact_of_postgres_is_found(changed, expected):
    found = postgres.judge_server(SOUND_POSTGRES._replace(**changed))

    assert levels(found) == expected
    assert all(map(is_explained, found))


def test_the_value_of_a_custom_setting_is_not_shown():
    [found] = postgres.judge_settings({"app.jwt_secret": "geheim", "jit": "off"})

    assert "app.jwt_secret" in found.what
    assert "jit = off" in found.what
    assert "geheim" not in found.what


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (postgres.Link("/run/postgresql", False, "prefer"), {}),
        (postgres.Link("127.0.0.1", False, "prefer"), {}),
        (postgres.Link("db.example.com", False, "prefer"), {"encryption": "note"}),
        (postgres.Link("10.0.0.7", True, "require"), {"encryption": "note"}),
        (postgres.Link("10.0.0.7", True, "verify-full"), {}),
    ],
)
def test_a_connection_to_another_machine_is_to_be_encrypted_and_checked(link, expected):
    assert levels(postgres.judge_link(link)) == expected


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        (Backends(7, (7, 7), (8, 8)), None),
        (Backends(7, (3, 3), (3, 3)), "ok"),
        (Backends(7, (3, 4), (5, 5)), "ok"),
        (Backends(7, (3, 3), (4, 4)), "note"),
    ],
)
def test_a_pooler_is_known_by_the_processes_that_serve_two_clients(backends, expected):
    assert [str(finding.level) for finding in pooler.judge_backends(backends)] == ([expected] if expected else [])


def test_a_statement_timeout_that_lets_nothing_through_is_told_from_a_server_that_is_away():
    assert postgres.explain_cancel(psycopg.errors.QueryCanceled("canceling statement")).level is Level.MEND
    assert postgres.explain_cancel(psycopg.OperationalError("connection refused")) is None


def test_a_pooler_in_statement_mode_is_known_by_its_refusal():
    error = psycopg.errors.ProtocolViolation("transaction blocks not allowed in statement pooling mode")

    assert pooler.explain_refusal(error).level is Level.MEND
    assert pooler.explain_refusal(psycopg.OperationalError("connection refused")) is None


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("posix", 2**30, {}),
        ("posix", 64 * 2**20, {"shared_memory": "note"}),
        ("posix", None, {"shared_memory": "note"}),
        ("mmap", None, {}),
    ],
)
def test_a_small_dev_shm_is_found(kind, size, expected):
    assert levels(machine.judge_shared_memory(kind, size)) == expected


@pytest.mark.parametrize(
    ("judge", "changed", "expected"),
    [
        (database_rights.judge_worker, {}, {}),
        (database_rights.judge_worker, {"lacks": ["INSERT ON movements"]}, {"role": "mend"}),
        (database_rights.judge_worker, {"sees_all": False}, {"role": "mend"}),
        (database_rights.judge_worker, {"is_owner": True}, {"role": "note"}),
        (database_rights.judge_worker, {"may_change": ["DELETE ON movements"]}, {"role": "note"}),
        (database_rights.judge_reader, {"sees_all": False}, {}),
        (database_rights.judge_reader, {}, {"role": "note"}),
        (database_rights.judge_reader, {"lacks": ["SELECT ON movements"]}, {"role": "mend"}),
        (database_rights.judge_reader, {"is_superuser": True}, {"role": "note"}),
    ],
)
def test_a_role_with_too_few_rights_is_to_mend_and_one_with_too_many_is_a_note(judge, changed, expected):
    found = judge(SOUND_ROLE._replace(**changed))

    assert levels(found) == expected
    assert all(map(is_explained, found))


def test_a_ledger_that_no_process_can_use_is_explained_by_its_own_message():
    behind = describe_unusable(SchemaBehind("0003"))
    assert behind.what.startswith("The database's schema is at 0003, but this program needs 0")
    assert behind.to_do == "Run `usage-feeds migrate`."

    differ = describe_unusable(SettingsDiffer("EVENT_SHARDS", 4, 8))
    assert differ.what == "EVENT_SHARDS is 4 here, but 8 in the ledger."
    assert differ.to_do == "Set EVENT_SHARDS=8, or change the ledger with `usage-feeds migrate`."


# --- Redis


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"redis_version": "6.2.14"}, {"version": "mend"}),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.1"}, {}),
        ({"role": "slave"}, {"replica": "mend"}),
        ({"cluster_enabled": 1}, {"cluster": "mend"}),
        ({"min_slaves_good_slaves": 0}, {"replica": "mend"}),
        ({"maxmemory_policy": "allkeys-lru"}, {"eviction": "mend"}),
        ({"maxmemory": 0}, {"memory": "note"}),
        ({"used_memory": 2**30 * 3 // 4}, {"memory": "note"}),
        ({"aof_enabled": 0}, {"append_only": "mend"}),
        ({"aof_enabled": 0, "connected_slaves": 1}, {"append_only": "note"}),
        ({"aof_last_write_status": "err"}, {"disk": "mend"}),
        ({"rdb_last_bgsave_status": "err"}, {"disk": "mend"}),
        ({"connected_clients": 9_000}, {"clients": "note"}),
    ],
)
def test_each_unsafe_fact_of_the_streams_redis_is_found(changed, expected):
    found = redis_server.judge_server(redis_server.Server(SOUND_INFO | changed, "everysec"), {"streams", "feeds"})

    assert levels(found) == expected
    assert all(map(is_explained, found))


@pytest.mark.parametrize(
    ("synced", "expected"), [("always", {}), ("no", {"append_only": "mend"}), (None, {"append_only": "note"})]
)
def test_how_often_the_file_is_synced_is_judged_or_said_to_be_unknown(synced, expected):
    assert levels(redis_server.judge_server(redis_server.Server(SOUND_INFO, synced), {"broker"})) == expected


def test_a_redis_for_feeds_only_may_evict_and_needs_no_file():
    evicting = SOUND_INFO | {"maxmemory_policy": "allkeys-lru", "aof_enabled": 0}
    assert levels(redis_server.judge_server(redis_server.Server(evicting, None), {"feeds"})) == {}
    assert levels(redis_server.judge_server(redis_server.Server(SOUND_INFO, None), {"feeds"})) == {"eviction": "note"}


def test_a_redis_that_refuses_info_is_a_note():
    assert levels(redis_server.judge_server(None, {"streams"})) == {"info": "note"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (RedisAddress(path="/run/redis.sock"), {}),
        (RedisAddress(host="127.0.0.1"), {}),
        (RedisAddress(host="redis.example.com"), {"encryption": "note", "password": "note"}),
        (RedisAddress(host="10.0.0.7", password="x", tls={"ssl_cert_reqs": "none"}), {"encryption": "note"}),
        (RedisAddress(host="10.0.0.7", password="x", tls={"ssl_cert_reqs": "required"}), {}),
    ],
)
def test_an_address_of_another_machine_is_to_have_tls_and_a_password(address, expected):
    assert levels(redis_server.judge_address(address)) == expected


def test_keys_of_other_applications_are_counted_and_only_their_beginnings_are_shown():
    ours = [
        "events", "events:{3}", "events:awake", "events:post:a", "events\x06\x163", "movements:{1}", "drains",
        "feeds:ab:{org_a}", "feeds:ab:{org_a}:0", "limits:{a}", "unacked", "unacked_index", "unacked_mutex",
        "_kombu.binding.events", "_kombu.binding.celery.pidbox", "_kombu.binding_permanent.drains",
        "_kombu.binding_deadlines", "1f.reply.celery.pidbox",
    ]  # fmt: skip
    assert levels(redis_keys.judge_keys(redis_keys.Keys(ours, True))) == {}

    others = ["session:geheim", "session:geheim2", "celery", "celery-task-meta-1", "_kombu.binding.celery", "geheim"]
    [found] = redis_keys.judge_keys(redis_keys.Keys([*ours, *others], True))
    assert found.level is Level.NOTE
    assert found.what.startswith("6 of 24 keys belong to another application (")
    assert "session:*" in found.what
    assert "geheim" not in found.what


def test_streams_without_a_shard_and_feeds_of_another_ledger_are_found():
    keys = redis_keys.Keys(["events:{3}", "events:{12}", "feeds:ours:{org_a}", "feeds:other:{org_a}:0"], True)

    assert levels(redis_keys.judge_streams(keys, 8)) == {"shards": "mend"}
    assert redis_keys.judge_streams(keys, 16) == []
    assert levels(redis_keys.judge_stamps(keys, "ours")) == {"stamps": "note"}
    assert redis_keys.judge_stamps(redis_keys.Keys(["feeds:ours:{org_a}"], True), "ours") == []


@pytest.mark.parametrize(
    ("leftovers", "expected"),
    [
        (redis_keys.Leftovers(5, 0, 0, 0), []),
        (redis_keys.Leftovers(0, 1, 0, 0), ["note"]),
        (redis_keys.Leftovers(0, 0, 1, 0), ["note"]),
        (redis_keys.Leftovers(0, 0, 0, 1), ["mend"]),
        (None, ["note"]),
    ],
)
def test_messages_that_wait_for_no_consumer_are_found(leftovers, expected):
    found = redis_keys.judge_leftovers(leftovers)

    assert [str(finding.level) for finding in found if finding.level is not Level.OK] == expected


def test_a_refused_command_is_shown_with_its_key():
    [found] = redis_rights.judge_refused("poster", [("XDEL", "events:{0}", "0-1"), ("EVAL", "return 0", "1", "k")])

    assert found.level is Level.MEND
    assert found.what == "The user `poster` may not run XDEL events:{0}, EVAL k."


# --- Clocks, workers, RabbitMQ


def test_two_clocks_that_differ_by_more_than_a_second_are_to_mend_and_the_error_is_in_favour():
    assert levels(clocks.judge_clocks([HERE, Reading("Redis", 0.9, 0.01), Reading("Postgres", 0.2, 0.01)])) == {}
    assert levels(clocks.judge_clocks([HERE, Reading("Redis", 1.4, 0.5)])) == {}

    found = clocks.judge_clocks([HERE, Reading("Redis", -600.0, 0.01), Reading("Postgres", 0.2, 0.01)])
    assert [finding.what for finding in found] == [
        "The clock of this machine is 600.0 s (± 0.0) ahead of that of Redis.",
        "The clock of Postgres is 600.2 s (± 0.0) ahead of that of Redis.",
    ]


def test_a_clock_is_read_with_half_of_the_round_trip_as_its_error():
    def ask():
        told = time.time() + 5
        time.sleep(0.05)
        return told

    reading = clocks.read_clock("Redis", ask)
    assert 0.02 < reading.error_s < 1
    assert abs(reading.ahead_s - 5) <= reading.error_s + 0.01


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], {"workers": "note"}),
        ([Worker("a", "prefork", 2, frozenset({"events", "drains"}))], {}),
        ([Worker("a", "prefork", 2, frozenset({"events"})), Worker("b", "solo", 1, frozenset({"drains"}))], {}),
        ([Worker("a", "prefork", 2, frozenset({"events"}))], {"queues": "mend"}),
        ([Worker("a", "gevent", 2, frozenset({"events", "drains"}))], {"pool": "mend"}),
        ([Worker("a", "prefork", 9, frozenset({"events", "drains"}))], {"processes": "note"}),
    ],
)
def test_workers_are_judged_by_their_pools_and_queues(workers, expected):
    found = celery_workers.judge_workers(workers, 8)

    assert levels(found) == expected
    assert all(map(is_explained, found))


def test_a_worker_of_another_application_has_no_queue_of_ours():
    stats = {"pool": {"implementation": "celery.concurrency.thread:TaskPool", "max-concurrency": 4}}

    assert celery_workers.parse_worker("x", [{"name": "celery"}], stats) == Worker("x", "thread", 4, frozenset())


def test_the_queues_of_rabbitmq_are_to_be_quorum_queues():
    states = [(True, True), (True, False), (True, None), (False, None)]
    queues = [rabbitmq.Declared("events", exists, is_quorum) for exists, is_quorum in states]

    found = rabbitmq.judge_queues(queues)
    assert [str(finding.level) for finding in found] == ["ok", "mend", "note", "note", "note"]


# --- How it is printed


def test_a_finding_is_one_line_that_folds_beside_its_level_on_a_narrow_terminal():
    finding = note("x", "This is so.", "It matters because of that.", "Do something about it, soon.")

    assert format_finding(finding, 1000).plain == (
        "  note  This is so. It matters because of that. Do something about it, soon."
    )
    lines = format_finding(finding, 40).plain.splitlines()
    assert max(map(len, lines)) <= 40
    assert {line[:8] for line in lines} == {"  note  ", " " * 8}
    assert " ".join(textwrap.dedent("\n".join(line[8:] for line in lines)).split("\n")) == (
        "This is so. It matters because of that. Do something about it, soon."
    )


def test_long_lists_of_names_are_cut():
    assert list_names(["a", "b"]) == "a, b"
    assert list_names([str(number) for number in range(10)], at_most=2) == "0, 1 and 8 more"
