"""With which peers is our reading compared? A FastAPI application as its users write it, in `peers/`: plain and cached."""

from http import HTTPStatus
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg

from tests.bench.environment import PEERS, peers_program
from tests.bench.servers import Servers
from tests.servers import wait_until
from worker.local.children import Process
from worker.local.valkey import free_port

KEY = "key_bench"
HEADERS = {"Authorization": f"Bearer {KEY}"}
STARTS_WITHIN_S = 30
GRANIAN = ("--interface", "asgi", "--workers", "1", "--http", "1", "--no-ws")
"""The server of our own endpoint, with the same options."""


class Peer(NamedTuple):
    """A peer that serves pages. `url` is its base URL."""

    process: Process
    url: str


def fill(servers: Servers) -> None:
    """Create the peers' table: a million movements of one organisation. It is vacuumed, so that autovacuum has nothing to do."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute((PEERS / "credits.sql").read_bytes())
        connection.execute("VACUUM (FREEZE, ANALYZE) credit_entries")
        connection.execute("CHECKPOINT")


def start_plain(servers: Servers) -> Peer:
    """Start FastAPI with SQLAlchemy and fastapi-pagination, and wait until it answers."""
    return start(servers, "credits_app:app")


def start_cached(servers: Servers) -> Peer:
    """Start the same application behind fastapi-cache2, which stores its pages in Redis, and wait until it answers."""
    return start(servers, "credits_cached:app")


def start(servers: Servers, app: str) -> Peer:
    """Start an application on a free port, and wait until it answers."""
    port = free_port()
    command = [peers_program("granian"), *GRANIAN, "--host", "127.0.0.1", "--port", str(port), app]
    peer = Peer(servers.start(*command, cwd=PEERS), f"http://127.0.0.1:{port}")

    def is_answering() -> bool:
        assert peer.process.poll() is None, f"{app} ended with {peer.process.returncode}: see {servers.folder}"
        return status(f"{peer.url}/openapi.json") == HTTPStatus.OK

    wait_until(is_answering, STARTS_WITHIN_S)
    return peer


def page_path(page: int, size: int = 20) -> str:
    """Return the path of a page."""
    return f"/credits/usage?page={page}&size={size}"


def status(url: str) -> int | None:
    """Return the status of a peer's response, or None if there is none."""
    try:
        with urlopen(Request(url, headers=HEADERS), timeout=5) as answer:
            return answer.status
    except HTTPError as error:
        return error.code
    except OSError:
        return None
