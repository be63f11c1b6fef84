"""How fast are pages served, against a static reply and against peers in the same run?"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import psycopg

from feeds.keys import create_key
from tests.bench import reading_peers
from tests.bench.deep import DEEP, DEEPEST, LIMIT, Depth, fill_deep, measure_depth
from tests.bench.ground import Ground, cleared, migrated, settle_down
from tests.bench.load import Answers, Asked, ask
from tests.bench.ours import PLENTY, organisations, post_directly, python, usages, verify
from tests.servers import wait_until
from worker.local import children
from worker.local.children import Process
from worker.local.valkey import free_port

STATIC = "static reply of the same server"
FROM_PROCESS = "page from the process, checked against Redis"
FROM_REDIS = "page made of lines from Redis"
FROM_POSTGRES = "page 40,000 of a million lines from Postgres, 8 connections"
CACHED_PEER = "FastAPI and fastapi-cache2, hits"
PLAIN_PEER = "FastAPI, SQLAlchemy and fastapi-pagination, page 40,000 of a million, 8 connections"
ENDPOINT = python("-m", "worker", "serve", "--port", "{port}")
MANY = 100
"""Organisations, each with ten pages of four feeds: more than a process keeps, so that each is made of what Redis holds."""
FEEDS = ("", "&kind=consume", "&usage_kind=ai_usage", "&kind=consume&usage_kind=ai_usage")
CACHED_PAGES = 10
SPAN = 5000
"""How many pages around the 40,000th are asked in turn: more than a process keeps, so that each comes from Postgres."""


class Side(NamedTuple):
    """One of those compared: its server, and what it is asked. `place`: where our pages must come from."""

    name: str
    server: Process
    asked: Asked
    place: str | None = None


def fill_many(ground: Ground) -> None:
    """Make many organisations with as many lines as the cache holds of each."""
    grants = (
        {"type": "grant", "org_id": org_id, "grant_ref": "grant_plan", "credits": PLENTY, "source": "plan"}
        for org_id in organisations(MANY)
    )
    post_directly(ground, grants)
    post_directly(ground, usages(MANY, MANY * LIMIT * CACHED_PAGES))


def make_key(ground: Ground, org_id: str) -> str:
    """Return a key of an organisation."""
    with psycopg.connect(ground.database_url) as connection:
        return create_key(connection, org_id=org_id)[1]


def make_personal_key(ground: Ground) -> str:
    """Return a key of a person who may read all organisations."""
    members = "INSERT INTO members (org_id, user_id, role) SELECT org_id, 'bench', 'billing' FROM organisations"
    with psycopg.connect(ground.database_url) as connection:
        connection.execute(members)
        return create_key(connection, user_id="bench")[1]


@contextmanager
def serving(ground: Ground, *command: str) -> Iterator[tuple[Process, str]]:
    """Run one of our servers on a free port, and give it with its address once it answers; `{port}` stands for the port."""
    port = free_port()
    process = ground.start(*(part.format(port=port) for part in command))
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_answering(base), within_s=60)
        yield process, base
    finally:
        children.end_group(process)


def is_answering(base: str) -> bool:
    try:
        with urlopen(f"{base}/livez", timeout=1):
            return True
    except OSError:
        return False


def get(base: str, path: str, key: str, **headers: str) -> bytes:
    """Return the body of one answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with urlopen(Request(base + path, headers={"Authorization": f"Bearer {key}", **headers}), timeout=30) as answer:
        return bytes(answer.read())


def held_by(base: str) -> dict[str, int]:
    """Return how many pages came from the process, from Redis, and not from either, by the endpoint's own metrics."""
    time.sleep(1.1)  # a scrape is given to all who ask within a second
    with urlopen(f"{base}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {"process": 0, "redis": 0, "postgres": 0}
    for line in lines:
        if line.startswith("usage_feeds_cache_hits_total{"):
            found[line.split('"')[1]] += int(float(line.split()[-1]))
        elif line.startswith("usage_feeds_cache_misses_total{"):
            found["postgres"] += int(float(line.split()[-1]))
    return found


def our_sides(ground: Ground, stack: ExitStack, lines: int) -> list[Side]:
    """Start our servers, and return what is asked of them."""
    deep_key, person_key = make_key(ground, DEEP), make_personal_key(ground)
    endpoint, base = stack.enter_context(serving(ground, *ENDPOINT))
    body = get(base, f"/credits/usage?limit={LIMIT}", deep_key)
    (ground.folder / "body").write_bytes(body)
    reply = python("-m", "tests.bench.static_reply", "{port}", str(ground.folder / "body"))
    static, static_base = stack.enter_context(serving(ground, *reply))
    first = max(1, min(DEEPEST, lines // LIMIT) - SPAN)
    newest = (f"/credits/usage?limit={LIMIT}",)
    cached = tuple(f"{newest[0]}&page={page}{feed}" for page in range(1, CACHED_PAGES + 1) for feed in FEEDS)
    deep = tuple(f"{newest[0]}&page={page}" for page in range(first, first + SPAN))
    org_ids = tuple(organisations(MANY))
    return [
        Side(STATIC, static, Asked(static_base, deep_key, newest)),
        Side(FROM_PROCESS, endpoint, Asked(base, deep_key, newest), "process"),
        Side(FROM_REDIS, endpoint, Asked(base, person_key, cached, org_ids), "redis"),
        Side(FROM_POSTGRES, endpoint, Asked(base, deep_key, deep, connections=8), "postgres"),
    ]


def peer_sides(ground: Ground, stack: ExitStack) -> list[Side]:
    """Start the peers on their own table, and return what is asked of them."""
    reading_peers.fill(ground)
    sides = []
    for name, start, page, connections in (
        (CACHED_PEER, reading_peers.start_cached, 1, 32),
        (PLAIN_PEER, reading_peers.start_plain, DEEPEST, 8),
    ):
        reader = start(ground)
        stack.callback(children.end_group, reader.process)
        asked = Asked(reader.url, reading_peers.KEY, (reading_peers.page_path(page, LIMIT),), connections=connections)
        sides.append(Side(name, reader.process, asked))
    return sides


def race(ground: Ground, rounds: int, share: float, say: Any) -> tuple[dict[str, list[Answers]], list[Depth]]:
    """Run all rounds, ours and the peers in turn; then ask for deep pages; then verify. `share` of the usual size."""
    lines, seconds = int(1_000_000 * share), 3 if share == 1 else 1
    runs = defaultdict(list)
    with ExitStack() as stack:
        ours = stack.enter_context(migrated(ground))
        fill_deep(ours, lines)
        fill_many(ours)
        settle_down(ours)
        depths = measure_depth(ours, int(400 * share) or 20)
        sides = our_sides(ours, stack, lines)
        if share == 1:
            sides += peer_sides(stack.enter_context(cleared(ground, flush=False)), stack)
        for side in sides:  # what the first asking costs is nobody's speed
            ask(side.asked, ours, side.server, seconds + 3)
        for number in range(1, rounds + 1):
            for side in sides:
                answers = run_side(side, ours, seconds)
                runs[side.name].append(answers)
                say(f"round {number}: {side.name}: {answers.rate:,.0f}/s, {answers.own_cpu_us:,.0f} µs")
        verify(ours)
    return dict(runs), depths


def run_side(side: Side, ground: Ground, seconds: int) -> Answers:
    """Run one round. Raises AssertionError where pages came from elsewhere than they should."""
    if side.place is None:
        return ask(side.asked, ground, side.server, seconds)
    before = held_by(side.asked.base)
    answers = ask(side.asked, ground, side.server, seconds)
    came = {place: count - before[place] for place, count in held_by(side.asked.base).items()}
    assert came[side.place] > 0.9 * sum(came.values()), f"{side.name}: pages came from {came}"
    return answers
