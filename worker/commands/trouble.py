"""Which errors can an operator fix, and how?"""

from collections.abc import Callable
from typing import Any

import kombu.exceptions
import psycopg
import redis
from pydantic import ValidationError
from pydantic_settings import SettingsError

from feeds.addresses.text import BadAddress
from feeds.schema import UnusableSetup
from feeds.settings import explain_settings
from worker.commands.output import format_refusal
from worker.commands.servers import explain_postgres, place_of_redis, reason
from worker.events import EventRefused
from worker.ledger.faults import describe
from worker.settings import worker_settings


def explain(error: Exception) -> str | None:
    """Return one line that says what is wrong and what to do, or None for an unknown error. It holds no secret."""
    for kinds, explain_kind in EXPLANATIONS:
        if isinstance(error, kinds):
            return explain_kind(error)
    return None


def explain_redis(error: Exception) -> str:
    """Return what Redis or its driver reported, where, and what to do."""
    place = place_of_redis(worker_settings().redis_url)
    return f"Redis at {place}: {reason(error)}: start `usage-feeds up`, or set REDIS_URL."


def explain_missing_right(error: psycopg.Error) -> str:
    """Return what Postgres did not permit, and what to do."""
    return f"Postgres: {error.diag.message_primary or reason(error)}: set DATABASE_URL to a role that has this right."


EXPLANATIONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[Any], str]], ...] = (
    (UnusableSetup, str),
    (EventRefused, format_refusal),
    (UnicodeEncodeError, lambda _: "An argument or a variable is not UTF-8: give it in UTF-8."),
    (BadAddress, str),
    ((ValidationError, SettingsError), explain_settings),
    (psycopg.errors.UndefinedTable, lambda _: "The database has no usage-feeds schema: run `usage-feeds migrate`."),
    (psycopg.errors.InsufficientPrivilege, explain_missing_right),
    (psycopg.OperationalError, lambda error: explain_postgres(error, worker_settings().database_url)),
    (psycopg.Error, lambda error: f"Postgres refused a command: {describe(error)}."),
    ((redis.ConnectionError, redis.TimeoutError), explain_redis),
    (redis.RedisError, lambda error: f"Redis refused a command: {reason(error)}."),
    (kombu.exceptions.OperationalError, lambda e: f"The broker: {reason(e)}: check CELERY_BROKER_URL."),
)
