"""What is a process of the write side told by its environment?"""

from functools import cache

from feeds.settings import LedgerFacts


class WorkerSettings(LedgerFacts):
    """What posting needs to know. `feeds_redis_url` and `celery_broker_url` fall back on `redis_url`."""

    database_url: str = ""
    redis_url: str = ""
    feeds_redis_url: str = ""
    celery_broker_url: str = ""


@cache
def worker_settings() -> WorkerSettings:
    """Read the settings, once for a process."""
    read = WorkerSettings()
    return read.model_copy(
        update={
            "feeds_redis_url": read.feeds_redis_url or read.redis_url,
            "celery_broker_url": read.celery_broker_url or read.redis_url,
        }
    )
