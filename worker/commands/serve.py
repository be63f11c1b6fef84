"""`serve`: the endpoint."""

import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress

import click
from granian.constants import HTTPModes, Interfaces
from granian.errors import FatalError
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from feeds.addresses.redis import parse_redis, refuse_cluster
from feeds.endpoint.asgi import App, build_app
from feeds.schema import check_ledger
from feeds.settings import reader_settings
from worker.commands import CannotRun
from worker.commands.servers import open_database, require_redis
from worker.commands.stopping import stop_at_signal
from worker.metrics import scrape
from worker.settings import worker_settings

BACKLOG = 1024
AT_ONCE = 512
"""How many requests are answered at the same time; more wait in their sockets."""
REQUEST_BYTES = 32 * 1024
"""The limit for a request's first line and headers together."""
HEADERS_WITHIN_MS = 10_000


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The port to listen on.")
def serve(*, host: str, port: int) -> None:
    """Run the endpoint: `GET /credits/usage`, `/openapi.json`, `/livez`, `/readyz` and `/metrics`.

    It is one process. To use more cores, run more of them, each on a port of its own. After SIGTERM it accepts
    connections for STOP_ACCEPTING_AFTER_S more; Ctrl-C is quicker, and a second signal ends it at once.
    """
    settings = reader_settings()
    is_own = settings.reader_database_url != settings.database_url
    variable = "READER_DATABASE_URL" if is_own else "DATABASE_URL"
    redis_variable = "REDIS_URL" if settings.feeds_redis_url == settings.redis_url else "FEEDS_REDIS_URL"
    feeds_redis = parse_redis(require_redis(settings.feeds_redis_url, redis_variable), redis_variable)
    worker_settings()  # `scrape` reads them
    with open_database(settings.reader_database_url, variable) as connection:
        check_ledger(connection, settings)
    refuse_cluster(feeds_redis, redis_variable)
    address = require_free(host, port)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(build_app([scrape.measure]), address, port, settings.stop_accepting_after_s))
    except FatalError as error:
        raise CannotRun("The endpoint could not start: the line above gives the reason.") from error


async def run(app: App, address: str, port: int, accept_for_s: float) -> None:
    """Serve until a signal, and for `accept_for_s` more after SIGTERM.

    The server runs in this process: granian's own main process leaves its worker running when it is killed.
    """
    schedule_as_batch()
    server = Server(
        app,
        address=address,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=AT_ONCE,
        http1_settings=HTTP1Settings(header_read_timeout=HEADERS_WITHIN_MS, max_buffer_size=REQUEST_BYTES),
        log_level=LogLevels.error,  # not its warning that this way of running it is new
    )
    server.on_startup(lambda: click.echo(f"The endpoint listens at http://{format_host(address)}:{port}"))
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop_at_signal(app, server, serving, port, accept_for_s))
    try:
        await serving
    except asyncio.CancelledError:
        pass
    finally:
        stopping.cancel()


def schedule_as_batch() -> None:
    """Keep the threads of this process from preempting each other whenever one of them wakes up.

    Otherwise granian's thread preempts Python's for every request that arrives: on one core that cost a fifth to
    a third of all requests a second. Only Linux has this scheduling policy, and a container may forbid it.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def require_free(host: str, port: int) -> str:
    """Return the host's address. Raises `CannotRun` unless the port is free: granian shares its port with others."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return str(address[0])
    except OSError as error:
        raise CannotRun(
            f"{format_host(host)}:{port} cannot be used: {error.strerror or error}: give another --host or --port."
        ) from None


def format_host(host: str) -> str:
    """Return a host in the form that a URL needs."""
    return f"[{host}]" if ":" in host else host
