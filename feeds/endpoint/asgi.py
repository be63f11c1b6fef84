"""Which paths does the endpoint answer, and what does it need for that? The ASGI app."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from feeds.cached.reader import CachedFeeds
from feeds.cached.writer import SQL as CACHE_SQL
from feeds.cursor import Signer
from feeds.endpoint.answer_cache import AnswerCache
from feeds.endpoint.errors import InternalError, MethodNotAllowed, NotFound, Problem
from feeds.endpoint.identity import Identities
from feeds.endpoint.metrics import CONTENT_TYPE, Scrapes
from feeds.endpoint.openapi import describe
from feeds.endpoint.rate_limit import RateLimiter
from feeds.endpoint.usage import GUARDS, Services, problem_answer, usage
from feeds.postgres import Postgres, PostgresAway
from feeds.read_through import Feeds
from feeds.schema import SQL as SCHEMA_SQL
from feeds.schema import Ledger, UnusableSetup, check_ledger, check_version
from feeds.settings import ReaderSettings, reader_settings
from feeds.single_flight import SingleFlight
from feeds.store import Store

log = logging.getLogger(__name__)

USAGE_PATH = "/credits/usage"
NOTE_USES_EVERY_S = 5.0


class App:
    """Takes pages around Starlette, whose routing costs more than they do."""

    def __init__(self, around: Starlette) -> None:
        self._around = around

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live one life."""
        if scope["type"] == "http" and scope["path"] == USAGE_PATH:
            await usage(scope, receive, send)
        else:
            await self._around(scope, receive, send)


def read_facts(settings: ReaderSettings) -> Ledger:
    """Return what is true of the ledger. Raises `UnusableSetup`, or psycopg's errors where it cannot be reached."""
    with psycopg.connect(settings.reader_database_url, connect_timeout=5) as connection:
        return check_ledger(connection, settings)


@asynccontextmanager
async def live(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Read the settings, check the ledger, and hold what answers are made from."""
    settings = reader_settings()
    ledger = await asyncio.to_thread(read_facts, settings)
    postgres, single_flight = Postgres(settings.reader_database_url), SingleFlight()
    epochs = Postgres(settings.reader_database_url, at_once=1)  # never waits behind pages
    identities = Identities(postgres, single_flight)
    noting = asyncio.create_task(keep_noting(identities))
    try:
        async with CachedFeeds(settings.feeds_redis_url, partial(read_epoch, epochs)) as cache:
            feeds = Feeds(Store(postgres, ledger.usage_numbers), single_flight, cache)
            seal = Signer(ledger.cursor_secret, ledger.usage_numbers)
            yield {
                "serving": Services(seal, feeds, identities, AnswerCache(), RateLimiter(cache.multiplexer)),
                "postgres": postgres,
                "scrapes": Scrapes(cache.multiplexer),
                "openapi": describe(ledger.usage_kinds),
            }
    finally:
        noting.cancel()
        with suppress(asyncio.CancelledError):
            await noting
        await identities.note_uses()
        await epochs.close()
        await postgres.close()


async def read_epoch(postgres: Postgres) -> UUID:
    """Return the ledger's epoch as of now. Raises `PostgresAway`."""
    [(epoch,)] = await postgres.fetch(CACHE_SQL["read_epoch"], {})
    return UUID(str(epoch))


async def keep_noting(identities: Identities) -> None:
    """Write down which keys were used, now and then."""
    while True:
        await asyncio.sleep(NOTE_USES_EVERY_S)
        await identities.note_uses()


async def livez(_request: Request) -> Response:
    """Say that the process answers."""
    return json_response({"status": "alive"})


async def readyz(request: Request) -> Response:
    """Say whether pages can be served: from Redis or from Postgres, whose schema is the one that this program knows.

    While Postgres is away the schema is taken to be as it last was; only known keys are served then.
    """
    cache: CachedFeeds = request.state.serving.feeds.cache
    away = [] if cache.epoch is not None and cache.multiplexer.server is not None else ["redis"]
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
    """Return what is counted and measured, for Prometheus. It holds nothing of anybody's."""
    answer = Response(await request.state.scrapes.read(), headers={"content-type": CONTENT_TYPE})
    answer.raw_headers += GUARDS
    return answer


def json_response(document: Any, status: int = 200) -> Response:
    """Return an answer of JSON."""
    answer = JSONResponse(document, status)
    answer.raw_headers += GUARDS
    return answer


def refuse_with(problem: type[Problem]) -> Any:
    """Return a handler that gives Starlette's own refusals our envelope."""

    async def refuse(_request: Request, _error: Exception) -> Response:
        status, headers, body, _ = problem_answer(problem())
        answer = Response(body, status)
        answer.raw_headers = headers
        return answer

    return refuse


around = Starlette(
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
    lifespan=live,
)
around.router.redirect_slashes = False  # a path has one spelling

app = App(around)
