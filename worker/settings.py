"""Which settings does a process of the write side have?"""

from functools import cache
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from feeds.addresses.broker import parse_broker
from feeds.settings import LedgerFacts, PostgresUrl, RedisUrl, variable_of


def check_broker(text: str, info: ValidationInfo) -> str:
    """Return an address of Celery's broker that `parse_broker` can parse. Raises BadAddress."""
    if text:
        parse_broker(text, variable_of(info))
    return text


class WorkerSettings(LedgerFacts):
    """The settings for posting. `feeds_redis_url` and `celery_broker_url` default to `redis_url`."""

    database_url: PostgresUrl = ""
    redis_url: RedisUrl = ""
    feeds_redis_url: RedisUrl = ""
    celery_broker_url: Annotated[str, AfterValidator(check_broker)] = ""


@cache
def worker_settings() -> WorkerSettings:
    """Return the settings. They are read once per process."""
    read = WorkerSettings()
    return read.model_copy(
        update={
            "feeds_redis_url": read.feeds_redis_url or read.redis_url,
            "celery_broker_url": read.celery_broker_url or read.redis_url,
        }
    )
