"""While batches are posted and shown, and feeds are read and refilled, nothing that is right is called wrong."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

from feeds.cached import writer
from feeds.cached.worker_connection import WorkerConnection
from tests.integration.command_line import run_json
from tests.integration.warm_feeds import add, drain, read_all, warm

ORG_IDS = [f"org_{number}" for number in range(4)]
ON_ITS_WAY_S = 0.02
AUDITS = 20


def write(environment, stop):
    """Post events of all organisations; each batch is on its way to the feeds for a while."""
    with closing(WorkerConnection(environment["REDIS_URL"])) as link:

        def show_late(connection, posted, repeated):
            link.know(writer.read_epoch(connection), since=float("-inf"))  # as a worker that has run for a while
            time.sleep(ON_ITS_WAY_S)
            writer.show(link, connection, posted.movements, posted.org_ids if repeated else ())

        number = 0
        while not stop.is_set():
            number += 1
            for org_id in ORG_IDS:
                add(environment, org_id, f"-{number}")
            drain(environment, show_late)


def test_under_load_there_is_no_false_alarm(environment):
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
    assert min(found["cached_feeds"] for found in audits) > 0
    assert audits[-1]["movements"] > audits[0]["movements"] + 100
