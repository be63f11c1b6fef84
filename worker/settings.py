"""Which settings does a process of the write side have?"""

from functools import cache

from feeds.settings import LedgerFacts


class WorkerSettings(LedgerFacts):
    """The settings for posting. `feeds_redis_url` and `celery_broker_url` default to `redis_url`."""

    database_url: str = ""
    redis_url: str = ""
    feeds_redis_url: str = ""
    celery_broker_url: str = ""


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
