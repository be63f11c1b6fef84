"""May a worker or the schedule start? Celery's own command runs them, so our commands' error handling is missing."""

import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

from feeds.addresses.broker import parse_broker
from feeds.addresses.redis import RedisAddress, refuse_cluster
from feeds.addresses.text import BadAddress
from feeds.schema import UnusableSetup
from feeds.settings import explain_settings
from worker.process import ledger
from worker.settings import WorkerSettings, worker_settings

T = TypeVar("T")


def settings_or_exit() -> WorkerSettings:
    """Return the settings; end the process, with one line and exit code 2, if they cannot be used."""
    return run_or_exit(worker_settings)


def check_or_exit() -> None:
    """End the process, with one line and exit code 2, unless the ledger and the servers fit the settings."""
    run_or_exit(check_setup)


def check_setup() -> None:
    """Raise UnusableSetup if the ledger differs from the settings, or BadAddress if a server is one of a cluster."""
    ledger()
    refuse_clusters()


def refuse_clusters() -> None:
    """Raise BadAddress if a Redis of our settings is a node of a Redis Cluster. Each is asked once."""
    settings = worker_settings()
    asked = []
    for variable in ("REDIS_URL", "FEEDS_REDIS_URL", "CELERY_BROKER_URL"):
        address = parse_broker(getattr(settings, variable.lower()), variable)
        if isinstance(address, RedisAddress) and address not in asked:
            refuse_cluster(address, variable)
            asked.append(address)


def run_or_exit(function: Callable[[], T]) -> T:
    """Return what a function returns; end the process, with one line, if it finds the set-up unusable."""
    try:
        return function()
    except (ValidationError, SettingsError) as error:
        message = explain_settings(error)
    except (UnusableSetup, BadAddress) as error:
        message = str(error)
    sys.stderr.write(f"{message}\n")
    raise SystemExit(2)
