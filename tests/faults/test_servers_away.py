"""Servers die, hang, refuse or change while a real worker posts: each event is posted once, without help.

The numbers of faults are rows of the table in tests/README.md.
"""

import time

import psycopg
import pytest
import redis

from tests.acceptance.relay import Relay
from tests.faults.events_and_pages import grant, send, usage
from tests.faults.senders import send_until_answered
from tests.servers import server_folder
from worker.audit.ledger import audit_ledger
from worker.intake.streams import shard_of, stream_of
from worker.local import children
from worker.local.valkey import SIGNALS, start_valkey
from worker.producer import Producer

RESUMES_WITHIN_S = 5
AWAY_S = 18
"""How long Postgres is away: long enough for a doubling back-off to grow beyond RESUMES_WITHIN_S."""
STREAM = stream_of(shard_of("org_a", 8))


@pytest.fixture
def worker_with_schedule(processes):
    """Give the function that starts a worker and a schedule."""

    def start(env=None):
        worker = processes.worker(env=env)
        processes.schedule(env=env)
        return worker

    return start


def test_a_worker_with_a_half_open_connection_to_redis_posts_again_within_a_minute(
    worker_with_schedule, redis_relay, client, refs, wait_until
):
    """Fault 11 of tests/README.md."""
    worker = worker_with_schedule({"REDIS_URL": redis_relay.redis_url})
    send(client, usage("u1"))
    wait_until(lambda: refs() == ["u1"])
    redis_relay.drop_silently()
    send(client, usage("u2"))
    wait_until(lambda: refs() == ["u1", "u2"], within_s=60)
    assert worker.poll() is None


def test_events_wait_while_postgres_is_away_and_are_posted_when_it_is_back(
    worker_with_schedule, postgres_relay, client, refs, count_waiting, dead_letters, wait_until
):
    """Fault 18. A long absence only matters for the back-off: it must not go on for long after the server is back."""
    worker = worker_with_schedule({"DATABASE_URL": postgres_relay.database_url})
    send(client, usage("u1"))
    wait_until(lambda: refs() == ["u1"])
    postgres_relay.shut()
    back_at = time.monotonic() + AWAY_S
    number = 1
    while time.monotonic() < back_at:
        number += 1
        send(client, usage(f"u{number}"))
        time.sleep(1)  # the test is about how long Postgres is away
    assert refs() == ["u1"]
    assert count_waiting() == number - 1
    postgres_relay.open()
    wait_until(lambda: count_waiting() == 0, within_s=RESUMES_WITHIN_S)
    assert refs() == [f"u{n}" for n in range(1, number + 1)]
    assert dead_letters() == []
    assert worker.poll() is None


def test_a_batch_whose_connection_is_lost_at_the_commit_is_posted_once(
    worker_with_schedule, postgres_relay, connection, client, refs, count_waiting, wait_until
):
    """Fault 17: the server commits, but its reply is lost."""
    connection.execute(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(17); RETURN NULL; END'"
    )
    connection.execute(
        "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON movements DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION hold()"
    )
    connection.execute("SELECT pg_advisory_lock(17)")
    worker_with_schedule({"DATABASE_URL": postgres_relay.database_url})
    send(client, usage("u1"), grant("g"), usage("u2"))
    waiting_for_lock = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    wait_until(lambda: connection.execute(waiting_for_lock).fetchone()[0] == 1)
    postgres_relay.cut()
    connection.execute("SELECT pg_advisory_unlock(17)")
    wait_until(lambda: count_waiting() == 0, within_s=RESUMES_WITHIN_S)
    assert refs() == ["u1", "g", "u2"]
    assert audit_ledger(connection).findings == []


def test_a_batch_whose_connection_is_lost_inside_the_transaction_is_posted_once(
    worker_with_schedule, connection, database_url, client, refs, count_waiting, wait_until
):
    """Fault 17 of tests/README.md."""
    worker_with_schedule()
    send(client, usage("u1"))
    wait_until(lambda: refs() == ["u1"])
    blocked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database_url) as locking:
        locking.execute("SELECT FROM organisations FOR UPDATE")
        send(client, usage("u2"))
        [(pid,)] = wait_until(lambda: connection.execute(blocked).fetchall())
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
    wait_until(lambda: count_waiting() == 0, within_s=RESUMES_WITHIN_S)
    assert refs() == ["u1", "u2"]


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        pytest.param("SELECT refuse('25006')", "SELECT allow()", id="19-read-only"),
        pytest.param("SELECT refuse('53100')", "SELECT allow()", id="19-disk-full"),
        pytest.param("SELECT refuse('40P01')", "SELECT allow()", id="20-deadlock"),
        pytest.param("SELECT refuse('40001')", "SELECT allow()", id="20-serialisation"),
    ],
)
def test_while_postgres_refuses_all_writes_events_wait_and_are_posted_afterwards(
    worker_with_schedule, connection, database_url, client, refs, count_waiting, dead_letters, wait_until, refuse, allow
):
    """Faults 19 and 20. A trigger raises the server's error: a test cannot fill a disk without its own mount."""
    connection.execute(REFUSING)
    worker_with_schedule()
    send(client, usage("u1"))
    wait_until(lambda: refs() == ["u1"])
    wait_until(lambda: count_waiting() == 0)
    name = connection.info.dbname
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    connection.execute(refuse)
    connection.execute(others, [name])
    send(client, usage("u2"))
    wait_until(lambda: oldest_age_s(client) > 3, within_s=10)
    assert count_waiting() == 1
    assert dead_letters() == []
    connection.execute(allow)
    connection.execute(others, [name])
    wait_until(lambda: count_waiting() == 0, within_s=RESUMES_WITHIN_S)
    assert refs() == ["u1", "u2"]
    assert dead_letters() == []


REFUSING = """
CREATE FUNCTION refuse(code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE FUNCTION refuse_movement() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN'
        ' RAISE EXCEPTION USING ERRCODE = %L, MESSAGE = ''refused''; END $f$', code);
    CREATE TRIGGER refused BEFORE INSERT ON movements FOR EACH ROW EXECUTE FUNCTION refuse_movement();
END
$$;
CREATE FUNCTION allow() RETURNS void LANGUAGE sql AS 'DROP TRIGGER refused ON movements';
"""


def oldest_age_s(client):
    """Return how many seconds the oldest event has waited, as the metric computes it."""
    [(entry_id, _)] = client.xrange(STREAM, count=1)
    return client.time()[0] - int(entry_id.split(b"-")[0]) / 1000


def is_well(processes, worker):
    """Tell whether a worker is alive and has not given up: after it gives up, it takes a while to end."""
    return worker.poll() is None and "Unrecoverable error" not in processes.output(worker)


@pytest.fixture
def own_valkey():
    """Give the function that starts a Valkey that only this test uses. A second call with the same name restarts it."""
    with server_folder() as folder, (folder / "log").open("wb") as log:
        started = []

        def start(name="valkey"):
            started.append(start_valkey(folder / name, log))
            return started[-1]

        yield start
        for server in started:
            children.stop(server.process, SIGNALS, within_s=10)


def test_after_redis_is_killed_and_restarted_every_event_is_posted_and_the_worker_goes_on(
    processes, worker_with_schedule, own_valkey, refs, connection, wait_until
):
    """Fault 8: this Redis is broker, streams and feeds at once."""
    server = own_valkey()
    worker = worker_with_schedule({"REDIS_URL": server.url})
    with Producer(server.url) as producer:
        producer.usage("org_a", "u1", "ai_usage", 1)
    wait_until(lambda: refs() == ["u1"])
    with psycopg.connect(connection.info.dsn) as locking:
        locking.execute("SELECT FROM organisations FOR UPDATE")  # so that events wait when Redis dies
        with redis.Redis.from_url(server.url) as client:
            send(client, usage("u2"), usage("u3"))
            client.execute_command("WAITAOF", 1, 0, 5000)
        children.end_group(server.process)
    assert own_valkey().url == server.url
    wait_until(lambda: refs() == ["u1", "u2", "u3"], within_s=15)
    with Producer(server.url) as producer:
        producer.usage("org_a", "u4", "ai_usage", 1)
    wait_until(lambda: refs() == ["u1", "u2", "u3", "u4"], within_s=RESUMES_WITHIN_S)
    assert is_well(processes, worker)


def test_a_failover_of_redis_to_a_replica_loses_no_event_that_the_replica_held(
    processes, worker_with_schedule, own_valkey, refs, wait_until, connection
):
    """Fault 34: the same address leads to another server, whose new ids are below the offset."""
    first, second = own_valkey("first"), own_valkey("second")
    with redis.Redis.from_url(first.url) as master, redis.Redis.from_url(second.url) as replica:
        password = master.connection_pool.connection_kwargs["password"]
        replica.config_set("masterauth", password)
        replica.replicaof("127.0.0.1", master.connection_pool.connection_kwargs["port"])
        with Relay(first.url) as relay:
            worker = worker_with_schedule({"REDIS_URL": relay.redis_url})
            send(master, usage("u1"))
            wait_until(lambda: refs() == ["u1"])
            master.xadd(STREAM, {"event": b'{"type":"settle","org_id":"org_a"}'}, id=f"{2**42}-0")
            wait_until(lambda: master.xlen(STREAM) == 0)
            assert master.wait(1, 5000) == 1
            relay.shut()
            children.end_group(first.process)
            replica.replicaof("NO", "ONE")
            replica.config_set("requirepass", password)
            replica.delete(STREAM)  # its clock is behind: its new ids are below the offset
            send(replica, usage("u2"), usage("u3"))
            relay.url = relay.url._replace(
                netloc=f":{password}@127.0.0.1:{replica.connection_pool.connection_kwargs['port']}"
            )
            relay.open()
            wait_until(lambda: refs() == ["u1", "u2", "u3"], within_s=15)
            wait_until(lambda: replica.xlen(STREAM) == 0)
            assert is_well(processes, worker)


def test_a_redis_that_pauses_its_clients_is_waited_for(worker_with_schedule, redis_url, client, refs, wait_until):
    """A managed Redis pauses its clients before it fails over; the worker's connections stay open and silent."""
    worker = worker_with_schedule()
    send(client, usage("u1"))
    wait_until(lambda: refs() == ["u1"])
    client.execute_command("CLIENT", "PAUSE", 8000, "ALL")
    with Producer(redis_url, event_shards=8, usage_kinds=["ai_usage"]) as producer:
        with pytest.raises(redis.RedisError):
            producer.usage("org_a", "u2", "ai_usage", 1)
        send_until_answered(producer, [usage("u2")])
    wait_until(lambda: refs() == ["u1", "u2"], within_s=60)
    assert worker.poll() is None
