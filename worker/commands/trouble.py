"""What can an operator do about an error?"""

from collections.abc import Callable
from typing import Any

import kombu.exceptions
import psycopg
import redis
from pydantic import ValidationError
from pydantic_settings import SettingsError

from feeds.schema import UnusableSetup
from feeds.state import addresses_file
from worker.commands.output import format_refusal
from worker.commands.servers import explain_postgres, place_of_redis, reason
from worker.events import EventRefused
from worker.settings import worker_settings


def explain(error: Exception) -> str | None:
    """Return one line that says what is wrong and what to do, or None where that is not known. No secret is in it."""
    for kinds, say in EXPLANATIONS:
        if isinstance(error, kinds):
            return say(error)
    return None


def explain_settings(error: ValidationError) -> str:
    """Name each variable with what is wrong about it; no value is repeated, it may hold a password."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{problem['loc'][0]!s}".upper() + f": {problem['msg']}" for problem in problems) + "."


def explain_redis(error: Exception) -> str:
    """Name the address that was tried."""
    place = place_of_redis(worker_settings().redis_url)
    return f"Redis at {place}: {reason(error)}: start `usage-feeds up`, or set REDIS_URL."


EXPLANATIONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[Any], str]], ...] = (
    (UnusableSetup, str),
    (EventRefused, format_refusal),
    (ValidationError, explain_settings),
    (SettingsError, lambda _: f"{addresses_file()} cannot be read: start `usage-feeds up` again."),
    (psycopg.errors.UndefinedTable, lambda _: "The database has no schema of ours: run `usage-feeds migrate`."),
    (psycopg.errors.InsufficientPrivilege, lambda e: f"Postgres: {reason(e)}: set DATABASE_URL to a role that may."),
    (psycopg.OperationalError, lambda error: explain_postgres(error, worker_settings().database_url)),
    ((redis.ConnectionError, redis.TimeoutError), explain_redis),
    (redis.RedisError, lambda error: f"Redis refuses: {reason(error)}."),
    (kombu.exceptions.OperationalError, lambda e: f"The broker: {reason(e)}: see CELERY_BROKER_URL."),
)
