"""Whom does our reading race against? A FastAPI application as its users write it, in `peers/`: plain, and cached."""

from http import HTTPStatus
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg

from tests.bench.environment import PEERS, peers_program
from tests.bench.ground import Ground
from tests.servers import wait_until
from worker.local.children import Process
from worker.local.valkey import free_port

KEY = "key_bench"
HEADERS = {"Authorization": f"Bearer {KEY}"}
STARTS_WITHIN_S = 30
GRANIAN = ("--interface", "asgi", "--workers", "1", "--http", "1", "--no-ws")
"""The server of our own endpoint, set as it is there."""


class Reader(NamedTuple):
    """A peer that serves pages; `url` is where it listens."""

    process: Process
    url: str


def fill(ground: Ground) -> None:
    """Make the peers' table: a million movements of one organisation, with nothing left for autovacuum to do."""
    with psycopg.connect(ground.database_url, autocommit=True) as connection:
        connection.execute((PEERS / "credits.sql").read_bytes())
        connection.execute("VACUUM (FREEZE, ANALYZE) credit_entries")
        connection.execute("CHECKPOINT")


def start_plain(ground: Ground) -> Reader:
    """Start FastAPI with SQLAlchemy and fastapi-pagination, and wait until it answers."""
    return start(ground, "credits_app:app")


def start_cached(ground: Ground) -> Reader:
    """Start the same behind fastapi-cache2, its pages in Redis, and wait until it answers."""
    return start(ground, "credits_cached:app")


def start(ground: Ground, app: str) -> Reader:
    """Start an application."""
    port = free_port()
    command = [peers_program("granian"), *GRANIAN, "--host", "127.0.0.1", "--port", str(port), app]
    reader = Reader(ground.start(*command, cwd=PEERS), f"http://127.0.0.1:{port}")

    def answers() -> bool:
        assert reader.process.poll() is None, f"{app} ended with {reader.process.returncode}: see {ground.folder}"
        return status(f"{reader.url}/openapi.json") == HTTPStatus.OK

    wait_until(answers, STARTS_WITHIN_S)
    return reader


def page_path(page: int, size: int = 20) -> str:
    """Return where a page is."""
    return f"/credits/usage?page={page}&size={size}"


def status(url: str) -> int | None:
    """Return what a peer answers, None where nobody does."""
    try:
        with urlopen(Request(url, headers=HEADERS), timeout=5) as answer:
            return answer.status
    except HTTPError as error:
        return error.code
    except OSError:
        return None
