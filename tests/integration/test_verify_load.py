"""While batches are posted and published, and feeds are read and refilled, verify reports no difference."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

from feeds.cached import writer
from feeds.cached.epoch import read_epoch
from feeds.cached.worker_connection import WorkerConnection
from tests.integration.command_line import run_json
from tests.integration.warm_feeds import add, drain, read_all, warm

ORG_IDS = [f"org_{number}" for number in range(4)]
PUBLISHING_DELAY_S = 0.02
AUDITS = 20


def write(environment, stop):
    """Post events of all organisations. Each batch is published a moment after its commit."""
    with closing(WorkerConnection(environment["REDIS_URL"])) as feeds_redis:

        def publish_late(connection, posted, is_repeat):
            # Like a worker that has known the epoch for a while.
            feeds_redis.note_epoch(read_epoch(connection), since=float("-inf"))
            time.sleep(PUBLISHING_DELAY_S)
            writer.publish(
                feeds_redis, connection, posted.movements, posted.org_ids if is_repeat else (), posted.revisions
            )

        number = 0
        while not stop.is_set():
            number += 1
            for org_id in ORG_IDS:
                add(environment, org_id, f"-{number}")
            drain(environment, publish_late)


def test_verify_gives_no_false_alarm_under_load(environment):
    for org_id in ORG_IDS:
        add(environment, org_id)
    drain(environment)
    warm(environment, *ORG_IDS)
    stop, deadline = Event(), time.monotonic() + 60
    with ThreadPoolExecutor(2) as threads:
        work = [
            threads.submit(write, environment, stop),
            threads.submit(asyncio.run, read_all(environment, ORG_IDS, stop.is_set)),
        ]
        audits = []
        try:
            while len(audits) < AUDITS and time.monotonic() < deadline and not any(part.done() for part in work):
                audits.append(run_json("verify"))
        finally:
            stop.set()
    for part in work:
        part.result()

    assert len(audits) == AUDITS
    assert min(audit["cached_feeds"] for audit in audits) > 0
    assert audits[-1]["movements"] > audits[0]["movements"] + 100
