"""Is every page that is served right, and how long does an event take to be on one?

Readers walk pages by number and by cursor all the time. What was served is kept, as a range of ordinals
and a digest, and compared with the ledger when the run is over.
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
from tests.faults.doors import Sender, send_surely
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


class Page(NamedTuple):
    """What was served: the lines of a feed with the ordinals `newest`, `newest` - 1 …, as a digest."""

    org_id: str
    feed: int
    newest: int
    lines: int
    digest: bytes


def digest_of(items: list[Any]) -> bytes:
    """Return a short digest of lines, as JSON objects."""
    return hashlib.blake2b(json.dumps(items, sort_keys=True).encode(), digest_size=8).digest()


class Served:
    """What all readers have seen. `wrong` holds the first few pages that cannot be, in words."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pages: list[Page] = []
        self.walks = self.errors = self.refused = self.wrong_count = 0
        self.stale = self.late = self.back = 0
        self.killed_at = 0.0
        self.slowest_s = 0.0
        self.wrong: list[str] = []
        self.floors: dict[tuple[int, str, int], int] = {}
        self.counts: deque[tuple[float, dict[str, list[int]]]] = deque(maxlen=60)

    def say_wrong(self, words: str) -> None:
        with self.lock:
            self.wrong_count += 1
            if len(self.wrong) < 20:
                self.wrong.append(words)

    def known_count(self, org_id: str, feed: int, before: float) -> int:
        """Return how long the feed was in the ledger at a moment, at least."""
        for at, counts in reversed(list(self.counts)):
            if at <= before:
                of_org = counts.get(org_id, [])
                return of_org[feed] if feed < len(of_org) else 0
        return 0


class Watcher(Sender):
    """Notes how long every feed is in the ledger, twice a second, while Postgres answers."""

    def __init__(self, stop: threading.Event, database_url: str, served: Served) -> None:
        super().__init__(stop)
        self.database_url, self.served = database_url, served

    def send_all(self) -> None:
        while not self.stopping.wait(0.5):
            try:
                with psycopg.connect(self.database_url, autocommit=True, connect_timeout=2) as connection:
                    while not self.stopping.wait(0.5):
                        rows = connection.execute("SELECT org_id, counts FROM organisations").fetchall()
                        self.served.counts.append((time.monotonic(), dict(rows)))
            except psycopg.OperationalError:
                continue


class Endpoint:
    """Where the endpoint is. `life` is raised whenever it was killed: another process has other memories."""

    def __init__(self, port: int, secrets: dict[str, str]) -> None:
        self.port, self.secrets, self.life = port, secrets, 0


class Client:
    """One connection to the endpoint, made anew when it breaks."""

    def __init__(self, endpoint: Endpoint, served: Served) -> None:
        self.endpoint, self.served = endpoint, served
        self.connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=SLOW_S)

    def get(self, org_id: str, **parameters: Any) -> dict[str, Any] | None:
        """Return a page, or None where the endpoint was away or said that it failed."""
        asked = {name: value for name, value in parameters.items() if value is not None}
        began = time.monotonic()
        try:
            self.connection.request(
                "GET",
                f"/credits/usage?{urlencode(asked)}",
                headers={"Authorization": f"Bearer {self.endpoint.secrets[org_id]}"},
            )
            answer = self.connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.served.refused += 1
            time.sleep(0.05)
            return None
        self.served.slowest_s = max(self.served.slowest_s, time.monotonic() - began)
        if answer.status != 200:
            if answer.status != 500:
                self.served.say_wrong(f"{answer.status} for {asked}: {body!r}")
            self.served.errors += 1
            return None
        found: dict[str, Any] = json.loads(body)
        return found


class Reader(Sender):
    """Reads pages of any feed, by number and by cursor."""

    def __init__(
        self, stop: threading.Event, endpoint: Endpoint, served: Served, org_ids: list[str], seed: int
    ) -> None:
        super().__init__(stop)
        self.endpoint, self.served, self.org_ids = endpoint, served, org_ids
        self.client = Client(endpoint, served)
        self.rng = random.Random(seed)
        self.every_s = 0.1

    def send_all(self) -> None:
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
        life, began = self.endpoint.life, time.monotonic()
        floor = self.served.floors.get((life, org_id, feed), 0)
        page = self.client.get(org_id, kind=kind and kind.value, usage_kind=usage_kind, page=number, limit=limit)
        if page is None:
            return
        total = page["pages"]["total_items"]
        newest = total - (number - 1) * limit
        wanted = max(0, min(limit, newest))
        if len(page["items"]) != wanted:
            self.served.say_wrong(
                f"{org_id} feed {feed} page {number} of {limit}: {len(page['items'])} lines, not {wanted}"
            )
        self.check_age(org_id, feed, total, floor, life, began)
        self.served.pages.append(Page(org_id, feed, max(newest, 0), wanted, digest_of(page["items"])))

    def check_age(self, org_id: str, feed: int, total: int, floor: int, life: int, began: float) -> None:
        """No page is older than one that this process served, nor than the ledger was 5 s before.

        Where something was killed within these 5 s that is only counted: the promise is about a single crash.
        """
        if life == self.endpoint.life:
            if total < floor:
                self.served.back += 1
                self.served.say_wrong(f"{org_id} feed {feed}: {total} lines after {floor}")
            with self.served.lock:
                key = life, org_id, feed
                self.served.floors[key] = max(total, self.served.floors.get(key, 0))
        known = self.served.known_count(org_id, feed, began - STALE_S)
        if total < known and self.served.killed_at > began - STALE_S:
            self.served.late += 1
        elif total < known:
            self.served.stale += 1
            self.served.say_wrong(f"{org_id} feed {feed}: {total} lines, {known} five seconds before")

    def walk(self, org_id: str, kind: Kind | None, usage_kind: str | None, limit: int) -> None:
        """Follow `next_cursor`: each line that existed at the start comes once, in order."""
        feed = feed_number(kind, USAGE_KINDS.index(usage_kind) if usage_kind else None)
        assert feed is not None
        page, newest = self.client.get(org_id, kind=kind and kind.value, usage_kind=usage_kind, limit=limit), None
        for _ in range(WALK_PAGES):
            if page is None:
                return  # the endpoint is away; what was read is kept
            newest = page["pages"]["total_items"] if newest is None else newest
            wanted = min(limit, newest)
            if len(page["items"]) != wanted:
                self.served.say_wrong(f"{org_id} feed {feed} by cursor: {len(page['items'])} lines, not {wanted}")
            self.served.pages.append(Page(org_id, feed, newest, wanted, digest_of(page["items"])))
            newest -= wanted
            cursor = page["pages"]["next_cursor"]
            if (cursor is not None) != (newest > 0):
                self.served.say_wrong(f"{org_id} feed {feed}: a next_cursor of {cursor} with {newest} lines to come")
            if cursor is None:
                break
            page = self.client.get(org_id, cursor=cursor, limit=limit)
        self.served.walks += 1


class Prober(Sender):
    """Sends one event at a time and looks until it is on a page: `seconds` holds how long each took."""

    def __init__(
        self, stop: threading.Event, endpoint: Endpoint, served: Served, redis_url: str, broker_url: str
    ) -> None:
        super().__init__(stop)
        self.client, self.redis_url, self.broker_url = Client(endpoint, served), redis_url, broker_url
        self.seconds: list[float] = []
        self.sent = 0
        self.again = 0

    def send_all(self) -> None:
        with Producer(self.redis_url, self.broker_url) as producer:
            while not self.stopping.wait(0.2):
                self.sent += 1
                org_id, ref = f"org_p{self.sent % 4}", f"p{self.sent}"
                event = {"type": "usage", "org_id": org_id, "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1}
                send_surely(producer, [event])
                self.seconds.append(self.wait_for(producer, event))

    def wait_for(self, producer: Producer, event: dict[str, Any]) -> float:
        began = asked = time.monotonic()
        while True:
            page = self.client.get(event["org_id"], limit=1)
            if page and [item["usage_ref"] for item in page["items"]] == [event["usage_ref"]]:
                return time.monotonic() - began
            if time.monotonic() - asked > 30:
                self.again += 1
                asked = time.monotonic()
                send_surely(producer, [event])
            time.sleep(0.01)
