"""Is every served page right, and how long does it take until a page holds an event?

Readers read pages by number and by cursor all the time. Each served page is recorded as a range of ordinals and a digest.
After the run it is compared with the ledger.
"""

import hashlib
import http.client
import json
import random
import threading
import time
from collections import deque
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psycopg

from feeds.movement import Kind
from feeds.page import feed_number
from tests.faults.senders import Activity, send_until_answered
from worker.producer import Producer

USAGE_KINDS = ("ai_usage", "tm_usage")
FEEDS = [
    (None, None),
    *((kind, None) for kind in Kind),
    (None, "ai_usage"),
    (Kind.CONSUME, "tm_usage"),
    (Kind.OVERFLOW, "ai_usage"),
]
STALE_S = 5.0
SLOW_S = 10.0
WALK_PAGES = 15
SEND_AGAIN_S = 30


class ServedPage(NamedTuple):
    """What was served: `length` items of a feed, from the ordinal `newest` downwards, as a digest."""

    org_id: str
    feed: int
    newest: int
    length: int
    digest: bytes


def digest_of(items: list[Any]) -> bytes:
    """Return a short digest of items, as JSON objects."""
    return hashlib.blake2b(json.dumps(items, sort_keys=True).encode(), digest_size=8).digest()


class Observations:
    """What all readers have observed.

    `errors` counts responses of 500. `stale`, `stale_after_kill` and `went_back` count pages that are too old, as
    `Reader.check_age` tells them apart. `wrong` describes the first few wrong responses.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pages: list[ServedPage] = []
        self.walks = self.errors = self.unanswered = self.wrong_count = 0
        self.stale = self.stale_after_kill = self.went_back = 0
        self.killed_at = 0.0
        self.slowest_s = 0.0
        self.wrong: list[str] = []
        self.highest_totals: dict[tuple[int, str, int], int] = {}
        self.ledger_counts: deque[tuple[float, dict[str, list[int]]]] = deque(maxlen=60)

    def report_wrong(self, words: str) -> None:
        with self.lock:
            self.wrong_count += 1
            if len(self.wrong) < 20:
                self.wrong.append(words)

    def count_before(self, org_id: str, feed: int, instant: float) -> int:
        """Return how many movements of a feed the ledger held at an instant, at least."""
        for observed_at, counts in reversed(list(self.ledger_counts)):
            if observed_at <= instant:
                of_org = counts.get(org_id, [])
                return of_org[feed] if feed < len(of_org) else 0
        return 0


class Watcher(Activity):
    """Records the count of every feed in the ledger, twice a second, while Postgres answers."""

    def __init__(self, stop: threading.Event, database_url: str, observations: Observations) -> None:
        super().__init__(stop)
        self.database_url, self.observations = database_url, observations

    def work(self) -> None:
        while not self.stopping.wait(0.5):
            try:
                with psycopg.connect(self.database_url, autocommit=True, connect_timeout=2) as connection:
                    while not self.stopping.wait(0.5):
                        rows = connection.execute("SELECT org_id, counts FROM organisations").fetchall()
                        self.observations.ledger_counts.append((time.monotonic(), dict(rows)))
            except psycopg.OperationalError:
                continue


class Endpoint:
    """The address of the endpoint, and the keys. `kills` is raised at each kill: a new process remembers nothing."""

    def __init__(self, port: int, secrets: dict[str, str]) -> None:
        self.port, self.secrets, self.kills = port, secrets, 0


class Client:
    """One connection to the endpoint. It is reopened after it breaks."""

    def __init__(self, endpoint: Endpoint, observations: Observations) -> None:
        self.endpoint, self.observations = endpoint, observations
        self.connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=SLOW_S)

    def get(self, org_id: str, **parameters: Any) -> dict[str, Any] | None:
        """Return a page, or None if the endpoint is away or answers 500."""
        query = {name: value for name, value in parameters.items() if value is not None}
        began = time.monotonic()
        try:
            self.connection.request(
                "GET",
                f"/credits/usage?{urlencode(query)}",
                headers={"Authorization": f"Bearer {self.endpoint.secrets[org_id]}"},
            )
            response = self.connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.observations.unanswered += 1
            time.sleep(0.05)
            return None
        self.observations.slowest_s = max(self.observations.slowest_s, time.monotonic() - began)
        if response.status != 200:
            if response.status != 500:
                self.observations.report_wrong(f"{response.status} for {query}: {body!r}")
            self.observations.errors += 1
            return None
        found: dict[str, Any] = json.loads(body)
        return found


class Reader(Activity):
    """Reads pages of any feed, by number and by cursor."""

    def __init__(
        self, stop: threading.Event, endpoint: Endpoint, observations: Observations, org_ids: list[str], seed: int
    ) -> None:
        super().__init__(stop)
        self.endpoint, self.observations, self.org_ids = endpoint, observations, org_ids
        self.client = Client(endpoint, observations)
        self.rng = random.Random(seed)
        self.every_s = 0.1

    def work(self) -> None:
        while not self.stopping.wait(self.every_s):
            org_id = self.rng.choice(self.org_ids[: self.rng.choice((3, len(self.org_ids)))])
            kind, usage_kind = self.rng.choice(FEEDS)
            limit = self.rng.choice((1, 20, 20, 100))
            if self.rng.random() < 0.05:
                self.walk(org_id, kind, usage_kind, limit)
            else:
                number = self.rng.choice((1, 1, 1, 2, 3, 40))
                self.read(org_id, kind, usage_kind, number, limit)

    def read(self, org_id: str, kind: Kind | None, usage_kind: str | None, number: int, limit: int) -> None:
        feed = feed_number(kind, USAGE_KINDS.index(usage_kind) if usage_kind else None)
        assert feed is not None
        kills, began = self.endpoint.kills, time.monotonic()
        highest = self.observations.highest_totals.get((kills, org_id, feed), 0)
        page = self.client.get(org_id, kind=kind and kind.value, usage_kind=usage_kind, page=number, limit=limit)
        if page is None:
            return
        total = page["pages"]["total_items"]
        newest = total - (number - 1) * limit
        wanted = max(0, min(limit, newest))
        if len(page["items"]) != wanted:
            self.observations.report_wrong(
                f"{org_id} feed {feed} page {number} of {limit}: {len(page['items'])} items, not {wanted}"
            )
        self.check_age(org_id, feed, total, highest, kills, began)
        self.observations.pages.append(ServedPage(org_id, feed, max(newest, 0), wanted, digest_of(page["items"])))

    def check_age(self, org_id: str, feed: int, total: int, highest: int, kills: int, began: float) -> None:
        """Check that no page is older than one that this process has served, or than the ledger was 5 s earlier.

        A page that is older than the ledger is only counted if something was killed within these 5 s, because the
        promise is about a single crash.

        Args:
            org_id: The organisation.
            feed: The number of the feed.
            total: The count that the page names.
            highest: The highest count that was served before the request.
            kills: How often the endpoint had been killed before the request.
            began: When the request began.
        """
        if kills == self.endpoint.kills:
            if total < highest:
                self.observations.went_back += 1
                self.observations.report_wrong(f"{org_id} feed {feed}: a count of {total} after {highest}")
            with self.observations.lock:
                key = kills, org_id, feed
                self.observations.highest_totals[key] = max(total, self.observations.highest_totals.get(key, 0))
        known = self.observations.count_before(org_id, feed, began - STALE_S)
        if total < known and self.observations.killed_at > began - STALE_S:
            self.observations.stale_after_kill += 1
        elif total < known:
            self.observations.stale += 1
            self.observations.report_wrong(f"{org_id} feed {feed}: a count of {total}, {known} five seconds earlier")

    def walk(self, org_id: str, kind: Kind | None, usage_kind: str | None, limit: int) -> None:
        """Follow `next_cursor`: each movement that existed at the start is served once, in order."""
        feed = feed_number(kind, USAGE_KINDS.index(usage_kind) if usage_kind else None)
        assert feed is not None
        page, newest = self.client.get(org_id, kind=kind and kind.value, usage_kind=usage_kind, limit=limit), None
        for _ in range(WALK_PAGES):
            if page is None:
                return  # the endpoint is away; the pages so far stay recorded
            newest = page["pages"]["total_items"] if newest is None else newest
            wanted = min(limit, newest)
            if len(page["items"]) != wanted:
                self.observations.report_wrong(
                    f"{org_id} feed {feed} by cursor: {len(page['items'])} items, not {wanted}"
                )
            self.observations.pages.append(ServedPage(org_id, feed, newest, wanted, digest_of(page["items"])))
            newest -= wanted
            cursor = page["pages"]["next_cursor"]
            if (cursor is not None) != (newest > 0):
                self.observations.report_wrong(
                    f"{org_id} feed {feed}: next_cursor is {cursor}, and {newest} items are left"
                )
            if cursor is None:
                break
            page = self.client.get(org_id, cursor=cursor, limit=limit)
        self.observations.walks += 1


class Prober(Activity):
    """Sends one event at a time and reads until a page holds it. `seconds` holds how long each took."""

    def __init__(
        self, stop: threading.Event, endpoint: Endpoint, observations: Observations, redis_url: str, broker_url: str
    ) -> None:
        super().__init__(stop)
        self.client, self.redis_url, self.broker_url = Client(endpoint, observations), redis_url, broker_url
        self.seconds: list[float] = []
        self.sent = 0
        self.sent_again = 0

    def work(self) -> None:
        with Producer(self.redis_url, self.broker_url) as producer:
            while not self.stopping.wait(0.2):
                self.sent += 1
                org_id, ref = f"org_p{self.sent % 4}", f"p{self.sent}"
                event = {"type": "usage", "org_id": org_id, "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1}
                send_until_answered(producer, [event])
                self.seconds.append(self.wait_for(producer, event))

    def wait_for(self, producer: Producer, event: dict[str, Any]) -> float:
        began = last_sent = time.monotonic()
        while True:
            page = self.client.get(event["org_id"], limit=1)
            if page and [item["usage_ref"] for item in page["items"]] == [event["usage_ref"]]:
                return time.monotonic() - began
            if time.monotonic() - last_sent > SEND_AGAIN_S:
                self.sent_again += 1
                last_sent = time.monotonic()
                send_until_answered(producer, [event])
            time.sleep(0.01)
