"""How fast are pages served? Compared with a static reply and with peers in the same run."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import psycopg

from feeds.keys import create_key
from tests.bench import reading_peers
from tests.bench.figures import Report
from tests.bench.load import Answers, Requests, send_requests
from tests.bench.page_depth import (
    DEEPEST,
    LARGE_ORGANISATION,
    LIMIT,
    Depth,
    fill_large_organisation,
    measure_depth,
)
from tests.bench.servers import Servers, do_pending_work, migrated_database, new_database
from tests.bench.usage_feeds import ENOUGH_CREDITS, organisations, post_directly, python, usages, verify
from tests.servers import wait_until
from worker.local import children
from worker.local.children import Process
from worker.local.valkey import free_port

STATIC = "static reply of the same server"
STATIC_BALANCE = "static reply of the size of a balance"
BALANCE = "balance from Redis"
FROM_PROCESS = "page from the process, checked against Redis"
FROM_REDIS = "page made of items from Redis"
FROM_POSTGRES = "page 40,000 of a million movements from Postgres, 8 connections"
CACHED_PEER = "FastAPI and fastapi-cache2, hits"
PLAIN_PEER = "FastAPI, SQLAlchemy and fastapi-pagination, page 40,000 of a million, 8 connections"
ENDPOINT = python("-m", "worker", "serve", "--port", "{port}")
MANY = 100
"""So many organisations have ten pages of four feeds each. A process caches fewer pages, so it makes each from Redis."""
FEEDS = ("", "&kind=consume", "&usage_kind=ai_usage", "&kind=consume&usage_kind=ai_usage")
CACHED_PAGES = 10
SPAN = 5000
"""So many pages up to the 40,000th are requested in turn. A process caches fewer, so each comes from Postgres."""


class Contender(NamedTuple):
    """What is compared: a server, and the requests that it gets. `source`: where our pages must come from."""

    name: str
    server: Process
    requests: Requests
    source: str | None = None


def fill_many(servers: Servers) -> None:
    """Create many organisations, each with as many movements as the cache holds of a feed."""
    grants = (
        {"type": "grant", "org_id": org_id, "grant_ref": "grant_plan", "credits": ENOUGH_CREDITS, "source": "plan"}
        for org_id in organisations(MANY)
    )
    post_directly(servers, grants)
    post_directly(servers, usages(MANY, MANY * LIMIT * CACHED_PAGES))


def make_key(servers: Servers, org_id: str) -> str:
    """Create a key of an organisation, and return its secret."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        return create_key(connection, org_id=org_id)[1]


def make_personal_key(servers: Servers) -> str:
    """Create a key of a user who may read all organisations, and return its secret."""
    members = "INSERT INTO members (org_id, user_id, role) SELECT org_id, 'bench', 'billing' FROM organisations"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(members)
        return create_key(connection, user_id="bench")[1]


@contextmanager
def running_server(servers: Servers, *command: str) -> Iterator[tuple[Process, str]]:
    """Run one of our servers on a free port, and give it and its base URL once it answers.

    `{port}` in the command is replaced by the port.
    """
    port = free_port()
    process = servers.start(*(part.format(port=port) for part in command))
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
    """Return the body of one response."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with urlopen(HttpRequest(base + path, headers={"Authorization": f"Bearer {key}", **headers}), timeout=30) as answer:
        return bytes(answer.read())


def count_pages_by_source(base: str) -> dict[str, int]:
    """Return how many pages came from the process, from Redis and from Postgres, by the endpoint's own metrics."""
    time.sleep(1.1)  # the endpoint repeats a scrape for a second
    with urlopen(f"{base}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {"process": 0, "redis": 0, "postgres": 0}
    for line in lines:
        if line.startswith("usage_feeds_cache_hits_total{"):
            found[line.split('"')[1]] += int(float(line.split()[-1]))
        elif line.startswith("usage_feeds_cache_misses_total{"):
            found["postgres"] += int(float(line.split()[-1]))
    return found


def our_contenders(servers: Servers, stack: ExitStack, movements: int) -> list[Contender]:
    """Start our servers, and return them with their requests."""
    large_key, user_key = make_key(servers, LARGE_ORGANISATION), make_personal_key(servers)
    endpoint, base = stack.enter_context(running_server(servers, *ENDPOINT))
    newest, balance = (f"/credits/usage?limit={LIMIT}",), ("/credits",)
    static, static_base = start_static(servers, stack, "page", get(base, *newest, large_key))
    static_balance, static_balance_base = start_static(servers, stack, "balance", get(base, *balance, large_key))
    first = max(1, min(DEEPEST, movements // LIMIT) - SPAN)
    cached = tuple(f"{newest[0]}&page={page}{feed}" for page in range(1, CACHED_PAGES + 1) for feed in FEEDS)
    deep = tuple(f"{newest[0]}&page={page}" for page in range(first, first + SPAN))
    org_ids = tuple(organisations(MANY))
    return [
        Contender(STATIC, static, Requests(static_base, large_key, newest)),
        Contender(FROM_PROCESS, endpoint, Requests(base, large_key, newest), "process"),
        Contender(FROM_REDIS, endpoint, Requests(base, user_key, cached, org_ids), "redis"),
        Contender(FROM_POSTGRES, endpoint, Requests(base, large_key, deep, connections=8), "postgres"),
        Contender(STATIC_BALANCE, static_balance, Requests(static_balance_base, large_key, balance)),
        Contender(BALANCE, endpoint, Requests(base, large_key, balance), "redis"),
    ]


def start_static(servers: Servers, stack: ExitStack, name: str, body: bytes) -> tuple[Process, str]:
    """Start a server that sends this body for every request, and return it with its base URL."""
    (servers.folder / name).write_bytes(body)
    command = python("-m", "tests.bench.static_reply", "{port}", str(servers.folder / name))
    return stack.enter_context(running_server(servers, *command))


def peer_contenders(servers: Servers, stack: ExitStack) -> list[Contender]:
    """Start the peers on their own table, and return them with their requests."""
    reading_peers.fill(servers)
    contenders = []
    for name, start, page, connections in (
        (CACHED_PEER, reading_peers.start_cached, 1, 32),
        (PLAIN_PEER, reading_peers.start_plain, DEEPEST, 8),
    ):
        peer = start(servers)
        stack.callback(children.end_group, peer.process)
        requests = Requests(
            peer.url, reading_peers.KEY, (reading_peers.page_path(page, LIMIT),), connections=connections
        )
        contenders.append(Contender(name, peer.process, requests))
    return contenders


def run_rounds(
    servers: Servers, rounds: int, share: float, report: Report
) -> tuple[dict[str, list[Answers]], list[Depth]]:
    """Measure deep pages; then run all rounds, ours and the peers in turn; then verify.

    Args:
        servers: The servers.
        rounds: How often each contender is measured.
        share: The size of the benchmark as a share of the usual size; below 1 without peers.
        report: Prints progress.
    """
    movements, seconds = int(1_000_000 * share), 3 if share == 1 else 1
    runs = defaultdict(list)
    with ExitStack() as stack:
        own = stack.enter_context(migrated_database(servers))
        fill_large_organisation(own, movements)
        fill_many(own)
        do_pending_work(own)
        depths = measure_depth(own, int(400 * share) or 20)
        contenders = our_contenders(own, stack, movements)
        if share == 1:
            contenders += peer_contenders(stack.enter_context(new_database(servers, flush=False)), stack)
        for contender in contenders:  # the first requests cost more and are not counted
            send_requests(contender.requests, own, contender.server, seconds + 3)
        for number in range(1, rounds + 1):
            for contender in contenders:
                answers = run(contender, own, seconds)
                runs[contender.name].append(answers)
                report(f"round {number}: {contender.name}: {answers.rate:,.0f}/s, {answers.own_cpu_us:,.0f} µs")
        verify(own)
    return dict(runs), depths


def run(contender: Contender, servers: Servers, seconds: int) -> Answers:
    """Run one round.

    Raises:
        AssertionError: Too many pages came from another source than they must.
    """
    if contender.source is None:
        return send_requests(contender.requests, servers, contender.server, seconds)
    before = count_pages_by_source(contender.requests.base)
    answers = send_requests(contender.requests, servers, contender.server, seconds)
    found = {source: count - before[source] for source, count in count_pages_by_source(contender.requests.base).items()}
    assert found[contender.source] > 0.9 * sum(found.values()), f"{contender.name}: pages came from {found}"
    return answers
