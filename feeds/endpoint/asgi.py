"""The ASGI app: which paths does the endpoint answer, and what does it hold open for that?"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from feeds.background import repeat
from feeds.bounded_map import BoundedMap
from feeds.cached.epoch import fetch_epoch
from feeds.cached.reader import CachedFeeds
from feeds.cursor import Signer
from feeds.database import connect
from feeds.endpoint.access import has_two_hosts
from feeds.endpoint.answer import BROWSER_HEADERS, problem_answer, respond, send_answer
from feeds.endpoint.answer_cache import ANSWERS_MAX, AnswerCache
from feeds.endpoint.balance import BALANCE
from feeds.endpoint.errors import InternalError, MethodNotAllowed, NotFound, Problem, TwoHosts
from feeds.endpoint.grants import GRANTS
from feeds.endpoint.identity import Identities
from feeds.endpoint.metrics import CONTENT_TYPE, Scrapes, Source
from feeds.endpoint.openapi import describe
from feeds.endpoint.rate_limit import RateLimiter
from feeds.endpoint.services import Services
from feeds.endpoint.statement import answer_statement
from feeds.endpoint.usage import answer_usage
from feeds.postgres import Postgres, PostgresAway
from feeds.read_through import Feeds
from feeds.schema import SQL as SCHEMA_SQL
from feeds.schema import Ledger, UnusableSetup, check_ledger, check_version
from feeds.settings import ReaderSettings, reader_settings
from feeds.single_flight import SingleFlight
from feeds.store import Store

log = logging.getLogger(__name__)

USAGE_PATH = "/credits/usage"
RAW_USAGE_PATH = USAGE_PATH.encode()
STATEMENTS = MappingProxyType({b"/credits": BALANCE, b"/credits/grants": GRANTS})
"""The paths beside `/credits/usage`, which need a key too."""
NOTE_USES_EVERY_S = 5.0


class App:
    """Passes requests for pages around Starlette, whose routing costs more than a page."""

    def __init__(self, starlette: Starlette) -> None:
        self._starlette = starlette
        self._starlette.state.is_stopping = self._is_stopping = False

    def stop(self) -> None:
        """Answer all requests from now on, but let no client send another on its connection."""
        self._starlette.state.is_stopping = self._is_stopping = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await self._starlette(scope, receive, send)
            return
        if self._is_stopping:
            send = partial(send_and_close, send)
        path = scope.get("raw_path") or scope["path"].encode()
        if path == RAW_USAGE_PATH:
            await respond(scope, send, "usage", answer_usage(scope))
        elif path in STATEMENTS:
            statement = STATEMENTS[path]
            await respond(scope, send, statement.noun, answer_statement(statement, scope))
        elif b"%" in path:  # Starlette would decode it
            await send_answer(scope, send, problem_answer(NotFound()))
        elif has_two_hosts(scope["headers"]):
            await send_answer(scope, send, problem_answer(TwoHosts()))
        else:
            await self._starlette(scope, receive, send)


async def send_and_close(send: Send, message: Message) -> None:
    """Send a part of an answer. The server closes the connection behind an answer with this header."""
    if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
    await send(message)


def build_app(metric_sources: Sequence[Source] = ()) -> App:
    """Return the endpoint's app. `metric_sources` are measured at each scrape, beside the endpoint's own metrics."""
    starlette = Starlette(
        routes=[
            Route("/openapi.json", openapi),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        exception_handlers={
            404: refuse_with(NotFound),
            405: refuse_with(MethodNotAllowed),
            500: refuse_with(InternalError),
        },
        lifespan=partial(lifespan, metric_sources),
    )
    starlette.router.redirect_slashes = False  # a path has one spelling; see also `App`
    return App(starlette)


@asynccontextmanager
async def lifespan(metric_sources: Sequence[Source], _app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Read the settings, check the ledger, and hold open what answers are made from."""
    settings = reader_settings()
    ledger = await asyncio.to_thread(read_facts, settings)
    postgres, single_flight = (
        Postgres(settings.reader_database_url, schema=ledger.schema, isolation=ledger.isolation),
        SingleFlight(),
    )
    # It never waits behind pages.
    epoch_postgres = Postgres(
        settings.reader_database_url, concurrency=1, schema=ledger.schema, isolation=ledger.isolation
    )
    identities = Identities(postgres, single_flight)
    noting = asyncio.create_task(repeat("noting the last use of keys", identities.note_uses, NOTE_USES_EVERY_S))
    try:
        async with CachedFeeds(settings.feeds_redis_url, partial(fetch_epoch, epoch_postgres)) as cache:
            feeds = Feeds(Store(postgres, ledger.usage_numbers), single_flight, cache)
            signer = Signer(ledger.cursor_secret, ledger.usage_numbers)
            yield {
                "services": Services(
                    signer, feeds, identities, RateLimiter(cache.multiplexer), AnswerCache(), BoundedMap(ANSWERS_MAX)
                ),
                "postgres": postgres,
                "scrapes": Scrapes(cache.multiplexer, metric_sources),
                "openapi": describe(ledger.usage_kinds),
            }
    finally:
        noting.cancel()
        with suppress(asyncio.CancelledError):
            await noting
        await identities.note_uses()
        await epoch_postgres.close()
        await postgres.close()


def read_facts(settings: ReaderSettings) -> Ledger:
    """Return the facts of the ledger. Raises `UnusableSetup`, or psycopg's errors if Postgres cannot be reached."""
    with connect(settings.reader_database_url, timeout_s=5) as connection:
        return check_ledger(connection, settings)


async def livez(_request: Request) -> Response:
    """Answer that the process is alive."""
    return json_response({"status": "alive"})


async def readyz(request: Request) -> Response:
    """Answer whether pages can be served: from Redis, or from Postgres if this program knows its schema.

    While Postgres is away the schema is assumed to be unchanged; then only known keys are served. A process that stops
    still serves, but is not ready: load balancers shall send requests to others.
    """
    if request.app.state.is_stopping:
        return json_response({"status": "unready", "reason": "the endpoint stops"}, 503)
    cache: CachedFeeds = request.state.services.feeds.cache
    away = [] if cache.epochs.current is not None and cache.multiplexer.server is not None else ["redis"]
    try:
        [row] = await request.state.postgres.fetch(SCHEMA_SQL["read_version"], {})
        check_version(row[0])
    except PostgresAway:
        away.insert(0, "postgres")
    except UnusableSetup as unusable:
        return json_response({"status": "unready", "reason": str(unusable)}, 503)
    if len(away) == 2:
        reason = "neither Postgres nor the feeds' Redis gave an answer"
        return json_response({"status": "unready", "reason": reason, "away": away}, 503)
    return json_response({"status": "ready", "away": away} if away else {"status": "ready"})


async def openapi(request: Request) -> Response:
    """Return the description of this interface."""
    return json_response(request.state.openapi)


async def metrics(request: Request) -> Response:
    """Return what is counted and measured, for Prometheus. It names no organisation and no key."""
    answer = Response(await request.state.scrapes.read(), headers={"content-type": CONTENT_TYPE})
    answer.raw_headers += BROWSER_HEADERS
    return answer


def json_response(document: Any, status: int = 200) -> Response:
    """Return an answer of JSON."""
    answer = JSONResponse(document, status)
    answer.raw_headers += BROWSER_HEADERS
    return answer


def refuse_with(problem: type[Problem]) -> Any:
    """Return an exception handler that puts our envelope around Starlette's own refusals."""

    async def refuse(_request: Request, _error: Exception) -> Response:
        status, headers, body, _ = problem_answer(problem())
        answer = Response(body, status)
        answer.raw_headers = headers
        return answer

    return refuse


app = build_app()
