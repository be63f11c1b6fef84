"""Reading from a real endpoint: paging while movements arrive, a restored ledger, keys and cursors of others."""

import json
import os
from collections import Counter
from contextlib import contextmanager
from threading import Event, Thread
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest
from psycopg import sql

from feeds.keys import create_key, set_member
from feeds.movement import format_id
from tests.acceptance.test_serve import request, run_command
from tests.seed import CONSUME_TM, MIXED, seed, seed_published

PAGED = int(os.environ.get("MOVEMENTS_TO_PAGE", "20000"))
ARRIVING_PER_S = 200
PAGE = "/credits/usage"


@pytest.fixture
def connection(environment):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


@contextmanager
def arriving(database_url, redis_url):
    """Add 200 movements a second and publish them as a worker does. Gives a list with how many were added."""
    ended, arrived = Event(), [0]

    def add():
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not ended.wait(0.05):
                seed_published(connection, redis_url, "org_a", MIXED[:5] + MIXED[:5])
                arrived[0] += ARRIVING_PER_S // 20

    writer = Thread(target=add)
    writer.start()
    try:
        yield arrived
    finally:
        ended.set()
        writer.join()


@pytest.fixture
def get_page(processes, connection):
    """Give the function that gets a page from a real endpoint, over one connection."""
    _, secret = create_key(connection, org_id="org_a")
    with httpx2.Client(base_url=processes.endpoint(), headers={"Authorization": f"Bearer {secret}"}) as client:

        def get(**params):
            answer = client.get(PAGE, params=params)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            return [int(item["usage_ref"].removeprefix("ref_")) for item in page["items"]], page["pages"]

        yield get


@pytest.mark.timeout(900)
def test_paging_next_and_then_prev_gives_each_movement_of_the_start_once_while_200_a_second_arrive(
    get_page, connection, database_url, redis_url
):
    seed(connection, "org_a", (MIXED * (PAGED // len(MIXED) + 1))[:PAGED])
    with arriving(database_url, redis_url) as arrived:
        found, pages = get_page(limit=100)
        newest = found[0]
        while pages["next_cursor"]:
            positions, pages = get_page(limit=100, cursor=pages["next_cursor"])
            found += positions
        arrived_meanwhile = arrived[0]
        assert found == list(range(newest, 0, -1))
        assert newest >= PAGED

        back = sorted(positions)
        while pages["prev_cursor"] and (not back or back[-1] < newest):
            positions, pages = get_page(limit=100, cursor=pages["prev_cursor"])
            assert pages["direction"] == "prev"
            back += reversed(positions)
        assert back == list(range(1, len(back) + 1))
        assert len(back) >= newest
    assert arrived_meanwhile > 0


def test_numbered_pages_and_totals_are_of_one_moment_while_movements_arrive(
    get_page, connection, database_url, redis_url
):
    seed(connection, "org_a", MIXED * 100)
    with arriving(database_url, redis_url):
        before = 0
        for number in range(1, 300):
            page = number % 40 + 1
            positions, pages = get_page(page=page, limit=7)
            total = pages["total_items"]
            assert positions == list(range(total - (page - 1) * 7, total - page * 7, -1))
            assert total >= before
            before = total


def test_after_a_restore_of_postgres_and_a_rebuild_no_lost_movement_is_served(
    processes, environment, database_url, redis_url, postgres_url, wait_until
):
    name, backup = urlsplit(database_url).path[1:], f"{urlsplit(database_url).path[1:]}_backup"
    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_a", MIXED)
        _, secret = create_key(connection, org_id="org_a")
    base = processes.endpoint()
    targets = [b"/credits/usage", b"/credits/usage?kind=consume", b"/credits/usage?limit=3&page=2"]
    with psycopg.connect(postgres_url, autocommit=True) as server:
        copy(server, name, backup)
        try:
            with psycopg.connect(database_url, autocommit=True) as connection:
                lost = seed(connection, "org_a", [CONSUME_TM] * 5)
            etags = [request(base, secret, target)[1]["etag"] for target in targets]
            assert format_id(lost[-1].created_at, lost[-1].hash).encode() in request(base, secret)[2]
            copy(server, backup, name)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(backup)))

    assert run_command(environment, "rebuild").returncode == 0
    with psycopg.connect(database_url, autocommit=True) as connection:
        # The lost movements' ordinals are used again, and the totals are again what they were.
        seed_published(connection, redis_url, "org_a", MIXED[:5])
        expected = connection.execute("SELECT created_at, hash FROM movements ORDER BY position DESC").fetchall()
    wait_until(lambda: request(base, secret)[0] == 200, within_s=5)
    for target, etag in zip(targets, etags, strict=True):
        status, headers, body = request(base, secret, target, b"If-None-Match: " + etag.encode())
        assert (status, headers["etag"] != etag) == (200, True)
        assert not any(format_id(movement.created_at, movement.hash).encode() in body for movement in lost)
    _, _, body = request(base, secret)
    assert [item["id"] for item in json.loads(body)["items"]] == [format_id(*facts) for facts in expected]


def copy(server, source, target):
    """Make a database a copy of another, as a restore from a backup does."""
    server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(target)))
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [source])
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    server.execute(create.format(sql.Identifier(target), sql.Identifier(source)))


BAD_PAGES = [
    "limit=0", "limit=101", "limit=-1", "limit=1.5", "limit=1e1", "limit=+1", "limit=%201", "limit=0x1", "limit=01",
    "page=0", "page=2147483648", "page=99999999999999999999", "page=%C2%B2", "page=%D9%A1", "page=1&page=1", "limit=1&limit=1",
    "page=1%00", "page=1;page=2", "cursor=x", "cursor=%00", "page=1&cursor=CURSOR", "cursor=CURSOR&cursor=CURSOR",
    "cursor=FORGED", "cursor=OTHERS", "cursor=CURSOR&kind=allot", "cursor=CURSOR&usage_kind=ai_usage",
]  # fmt: skip
BAD_FILTERS = [
    "kind=Allot", "kind=allot&kind=allot", "kind=%27%20OR%201%3D1--", "usage_kind=ai_usage%00", "usage_kind=AI_USAGE",
    "usage_kind=ai_usage,tm_usage", "kind=allot%3BDROP%20TABLE%20movements", "kind=%F0%9F%98%80", "kind=x&page=0&y=1",
]  # fmt: skip
BAD_PARAMETERS = ["offset=1", "Page=1", "kind%5B%5D=allot", "KIND=allot", "=1", "%00=1", "page%20=1"]


def test_each_bad_parameter_gets_its_code_and_no_byte_of_another_organisation(processes, connection):
    seed(connection, "org_a", MIXED * 9)
    seed(connection, "org_b", [CONSUME_TM] * 9)
    keys = [create_key(connection, org_id=org_id)[1] for org_id in ("org_a", "org_b")]
    base = processes.endpoint()
    cursors = [json.loads(request(base, key, b"/credits/usage?limit=5")[2])["pages"]["next_cursor"] for key in keys]
    forged = cursors[0][:-1] + ("A" if cursors[0][-1] != "A" else "B")
    refused = Counter()
    for code, queries in (("page", BAD_PAGES), ("filter", BAD_FILTERS), ("parameter", BAD_PARAMETERS)):
        for query in queries:
            sent = query.replace("CURSOR", cursors[0]).replace("FORGED", forged).replace("OTHERS", cursors[1])
            status, headers, body = request(base, keys[0], b"/credits/usage?" + sent.encode())
            error = json.loads(body)
            assert (status, error["code"]) == (400, f"credit.usage.invalid_{code}"), (query, body)
            assert "etag" not in headers
            assert (b"ref_" in body, b"cent_" in body) == (False, False)
            refused[code] += 1
    assert refused == {"page": len(BAD_PAGES), "filter": len(BAD_FILTERS), "parameter": len(BAD_PARAMETERS)}
    for query in ("", "page=", "kind=&usage_kind=&page=&limit=&cursor=", "page=2147483647", "limit=100"):
        status, _, body = request(base, keys[0], b"/credits/usage?" + query.encode())
        assert (status, json.loads(body)["pages"]["total_items"]) == (200, len(MIXED) * 9)


def test_one_person_reads_two_organisations_each_only_under_its_own_id(processes, connection):
    seed(connection, "org_a", MIXED)
    seed(connection, "org_b", [CONSUME_TM] * 3)
    _, secret = create_key(connection, user_id="ann")
    for org_id in ("org_a", "org_b"):
        set_member(connection, org_id, "ann", "admin")
    base = processes.endpoint()

    for org_id, total in (("org_a", len(MIXED)), ("org_b", 3), ("org_a", len(MIXED))):
        status, headers, body = request(base, secret, PAGE.encode(), b"X-Org-ID: " + org_id.encode())
        assert (status, json.loads(body)["pages"]["total_items"]) == (200, total)
        other = b"org_b" if org_id == "org_a" else b"org_a"
        etag = b"If-None-Match: " + headers["etag"].encode()
        assert request(base, secret, PAGE.encode(), b"X-Org-ID: " + org_id.encode(), etag)[0] == 304
        assert request(base, secret, PAGE.encode(), b"X-Org-ID: " + other, etag)[0] == 200
    cursor = json.loads(body)["pages"]["cursor"].encode()
    status, _, _ = request(base, secret, PAGE.encode() + b"?cursor=" + cursor, b"X-Org-ID: org_b")
    assert status == 400
    for named in (b"org_c", b"org_a\x00", b"ORG_A", b"org_a,org_b", b"org_a' OR '1'='1"):
        status, _, body = request(base, secret, PAGE.encode(), b"X-Org-ID: " + named)
        assert status in {400, 403}
        assert b"ref_" not in body
