"""The same application behind fastapi-cache2, which caches its pages in Redis for a minute, as in its documentation."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from credits_app import CreditEntry, OrgId, Session, newest_first
from fastapi import FastAPI, Request
from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache
from fastapi_pagination import Page, add_pagination
from fastapi_pagination.ext.sqlalchemy import apaginate
from redis import asyncio as aioredis


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect the cache."""
    redis = aioredis.from_url(os.environ["REDIS_URL"])
    FastAPICache.init(RedisBackend(redis), prefix="fastapi-cache", key_builder=key_of)
    yield
    await redis.aclose()


def key_of(function: object, namespace: str = "", *, request: Request, **rest: object) -> str:
    """Return the cache key of a page. The default key includes the session, which is new in each request: no hits."""
    org_id = rest["kwargs"]["org_id"]
    return ":".join([namespace, org_id, request.url.path, repr(sorted(request.query_params.items()))])


app = FastAPI(lifespan=lifespan)
add_pagination(app)


@app.get("/credits/usage", response_model=Page[CreditEntry])  # noqa: FAST001 -- `cache` hides the return type from FastAPI
@cache(expire=60)
async def list_usage(session: Session, org_id: OrgId) -> Page[CreditEntry]:
    """Return a page of the organisation's movements, newest first."""
    return await apaginate(session, newest_first(org_id))
