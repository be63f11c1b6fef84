"""Postgres switches to its standby under load, and the old primary lives on as a standby that lags.

Worker, schedule, endpoint and an open producer run throughout. All must go on unaided, with nothing lost and no page
from the old server. Not part of `run.py test`: `.ci/run matrix` runs it.
"""

import http.client
import json
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import cycle
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import pytest
import redis

from tests.acceptance.relay import Relay
from tests.faults.events_and_pages import usage
from tests.faults.senders import Activity, send_until_answered
from tests.matrix.postgres_pair import PASSWORD, postgres_pair, url_of
from tests.matrix.surroundings import can_connect, configure_pgbouncer, start_pgbouncer
from tests.servers import wait_until
from worker.audit.ledger import audit_ledger
from worker.intake.streams import stream_of
from worker.intake.sweep import SWEPT
from worker.local import children
from worker.producer import Producer

ORG = "org_a"
FIRST, RATE = 260, 50
"""How many usages are sent at once, more than a cached feed holds; then how many a second."""
ASTRAY_S = 3
"""How long the address leads to the old server after that one is back."""
RESUMES_WITHIN_S = 60
SLOW_S = 2.5
CACHED, DEEP = "cached", "below the cached window"
SORTS = (CACHED, DEEP)


class Sender(Activity):
    """Sends usages through one open producer. `sent` is how many were accepted."""

    def __init__(self, stop, redis_url):
        super().__init__(stop)
        self.redis_url, self.sent = redis_url, 0

    def work(self):
        with Producer(self.redis_url, event_shards=8, usage_kinds=["ai_usage"]) as producer:
            producer.send([usage(f"u{number}") for number in range(FIRST)])
            self.sent = FIRST
            while not self.stopping.wait(1 / RATE):
                send_until_answered(producer, [usage(f"u{self.sent}")])
                self.sent += 1


class Reader(Activity):
    """Reads pages all the time. `seen` holds when each was requested, its sort, its status and its total."""

    def __init__(self, stop, base, secret):
        super().__init__(stop)
        self.base, self.secret = base, secret
        self.seen = []
        self.slowest_s = 0.0

    def work(self):
        for limit in cycle(range(10, 30)):  # a page that was just read would come from the process's memory
            if self.stopping.wait(0.05):
                return
            for sort, query in ((CACHED, f"limit={limit}"), (DEEP, f"limit={limit}&page={240 // limit}")):
                began = time.monotonic()
                status, total = read_total(self.base, self.secret, query)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.seen.append((began, sort, status, total))

    def first(self, sort, total, after):
        """Return when a page with at least this total was first requested after a moment; None if none was."""
        pages = (at for at, seen, status, held in self.seen if (seen, status) == (sort, 200) and held >= total)
        return next((at for at in pages if at > after), None)


def read_total(base, secret, query):
    """Return the status of a page, and how many items its feed holds."""
    request = Request(f"{base}/credits/usage?{query}", headers={"Authorization": f"Bearer {secret}"})
    try:
        with urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)["pages"]["total_items"]
    except HTTPError as error:
        return error.code, 0
    except (OSError, http.client.HTTPException):
        return 0, 0


class Site:
    """All processes, under load."""

    def __init__(self, processes, redis_url, env):
        self.processes, self.redis_url, self.env = processes, redis_url, env
        self.run("migrate")
        self.secret = self.make_key()
        self.running = [processes.worker(env=env), processes.schedule(env=env)]
        self.base = processes.endpoint(env=env)
        self.running.append(processes.started[-1][1])
        self.stop = threading.Event()
        self.sender = Sender(self.stop, redis_url)
        self.reader = Reader(self.stop, self.base, self.secret)

    def run(self, *arguments):
        command = self.processes.command(*arguments, env=self.env)
        assert command.wait(timeout=60) == 0, self.processes.output(command)
        return self.processes.output(command)

    def make_key(self):
        return self.run("keys", "create", "--org", ORG).splitlines()[-1]

    @contextmanager
    def load(self):
        """Send and read until the block ends."""
        try:
            self.sender.start()
            # A schedule that starts while Postgres is away ends, for a supervisor to start it again: so wait for it.
            wait_until(lambda: self.has_swept() and self.read()[1] > FIRST, within_s=30)
            self.reader.start()
            wait_until(lambda: {seen[1] for seen in self.reader.seen} == {*SORTS})
            yield
        finally:
            self.stop.set()
            for activity in (self.sender, self.reader):
                activity.join(20)

    def has_swept(self):
        with redis.Redis.from_url(self.redis_url) as client:
            return client.exists(SWEPT)

    def wait_for_pages(self, began):
        """Wait until pages of every sort show what was added since the switch. Return after how many seconds each did."""
        after, total = time.monotonic(), self.sender.sent

        def resumed():
            found = [self.reader.first(sort, total, after) for sort in SORTS]
            return None not in found and found

        return [at - began for at in wait_until(resumed, within_s=RESUMES_WITHIN_S - (after - began))]

    def wait_for_new_key(self):
        """Wait until the endpoint knows a key that only the new primary has."""
        secret = self.make_key()
        wait_until(lambda: self.read(secret)[0] == 200, within_s=10)

    def read(self, secret=None):
        """Return the status of the first page, and how many movements it tells of."""
        return read_total(self.base, secret or self.secret, "limit=1")

    def check(self, database_url):
        """Check ledger, pages, processes and logs, after the load."""
        self.wait_for_empty_streams()
        for _ in range(10):
            with redis.Redis.from_url(self.redis_url) as client:
                client.delete("-", *client.keys("feeds:*"))  # so this page comes from Postgres
            assert self.read() == (200, self.sender.sent)
        assert [process.poll() for process in self.running] == [None] * 3
        self.check_a_new_epoch()
        self.check_ledger(database_url)
        self.run("health")
        self.check_seen()
        logs = "\n".join(self.processes.output(process) for _, process, _ in self.processes.started)
        assert "Traceback" not in logs
        assert PASSWORD not in logs

    def wait_for_empty_streams(self):
        with redis.Redis.from_url(self.redis_url) as client:
            wait_until(lambda: not any(client.xlen(stream_of(shard)) for shard in range(8)), within_s=20)

    def check_a_new_epoch(self):
        """An endpoint that learns the epoch from the old server would go on with the old feeds."""
        self.run("rebuild")
        with Producer(self.redis_url, event_shards=8) as producer:
            producer.send([usage(f"u{self.sender.sent}")])
        self.sender.sent += 1
        self.wait_for_empty_streams()
        assert self.read() == (200, self.sender.sent)

    def check_ledger(self, database_url):
        with psycopg.connect(database_url, autocommit=True) as connection:
            refs = [ref for (ref,) in connection.execute("SELECT usage_ref FROM movements")]
            assert sorted(refs) == sorted(f"u{number}" for number in range(self.sender.sent))
            assert audit_ledger(connection).findings == []
            assert connection.execute("SELECT FROM dead_letters").fetchall() == []
        self.run("verify")

    def check_standby(self, url):
        """Both commands that look at the set-up tell of a standby."""
        for name, words in (("health", "Postgres is a standby"), ("doctor", "This server is a standby")):
            command = self.processes.command(name, env=self.env | {"DATABASE_URL": url})
            assert command.wait(timeout=60) == 1
            assert words in self.processes.output(command)

    def check_seen(self):
        assert (self.sender.error, self.reader.error) == (None, None)
        for sort in SORTS:
            totals = [total for _, seen, status, total in self.reader.seen if (seen, status) == (sort, 200)]
            assert totals == sorted(totals), f"a page went back: {sort}"
        assert {status for _, _, status, _ in self.reader.seen} <= {200, 500}
        assert self.reader.slowest_s < SLOW_S


def through(relay):
    """Return the address that moves."""
    return url_of(relay.port)


@pytest.fixture
def pair():
    with postgres_pair() as made:
        yield made


def report(case, times):
    print(f"{case}: cached and deep pages resumed {', '.join(f'{s:.1f}' for s in times)} s after the switch")


def test_an_address_that_moves_late_while_old_connections_stay_open(processes, redis_url, pair):
    """For a while open and new connections meet the old server, which only reads. Open ones never move."""
    with Relay(pair.primary.url) as address:
        pair.lead(address, pair.primary)
        site = Site(processes, redis_url, {"DATABASE_URL": through(address)})
        with site.load():
            began = time.monotonic()
            pair.switch()
            time.sleep(ASTRAY_S)
            pair.lead(address, pair.primary)
            report("address that moves", site.wait_for_pages(began))
            site.wait_for_new_key()
        site.check(pair.primary.url)
        site.check_standby(pair.standby.url)


def test_an_address_with_both_hosts(processes, redis_url, pair):
    hosts = f"127.0.0.1:{pair.primary.port},127.0.0.1:{pair.standby.port}"
    url = url_of(0).replace("127.0.0.1:0", hosts)
    addresses = {"DATABASE_URL": f"{url}?target_session_attrs=read-write", "READER_DATABASE_URL": url}
    site = Site(processes, redis_url, addresses)
    with site.load():
        began = time.monotonic()
        pair.switch()
        report("two hosts", site.wait_for_pages(began))
        site.wait_for_new_key()
    site.check(pair.primary.url)


def test_pgbouncer_that_keeps_its_connections_to_the_old_server(processes, redis_url, pair, tmp_path):
    """Its connections look sound to it. We end them by leaving in the middle of a transaction."""
    with ExitStack() as life:
        address = life.enter_context(Relay(pair.primary.url))
        pair.lead(address, pair.primary)
        folder = pair.primary.folder.parent / "pgbouncer"
        url = configure_pgbouncer(folder, through(address))
        pooler = start_pgbouncer(folder, life.enter_context((tmp_path / "pgbouncer.log").open("wb")))
        life.callback(children.end_group, pooler)
        wait_until(lambda: can_connect(url))
        site = Site(processes, redis_url, {"DATABASE_URL": url})
        with site.load():
            began = time.monotonic()
            pair.switch()
            time.sleep(ASTRAY_S)
            pair.lead(address, pair.primary)
            report("PgBouncer", site.wait_for_pages(began))
            site.wait_for_new_key()
        site.check(pair.primary.url)
