"""Fixtures of all tests: a new database, an empty Redis, an environment, processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from feeds.settings import reader_settings
from tests import servers
from tests.servers import CHECKOUT, Processes
from worker.settings import worker_settings

OUR_VARIABLES = (
    "DATABASE_URL",
    "READER_DATABASE_URL",
    "REDIS_URL",
    "FEEDS_REDIS_URL",
    "CELERY_BROKER_URL",
    "EVENT_SHARDS",
    "USAGE_KINDS",
    "EXPIRY_GRACE_S",
    "STOP_ACCEPTING_AFTER_S",
)
"""Our variables, which the user's shell may set. No test may see the user's values."""


@pytest.fixture(scope="session", autouse=True)
def no_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's own settings and a running `up` from all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OUR_VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("USAGE_FEEDS_STATE", str(tmp_path_factory.mktemp("no-state")))
        yield


@pytest.fixture(scope="session")
def postgres_url(no_settings: None) -> Iterator[str]:
    """Give the URL of the Postgres server that all tests share."""
    with servers.postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """Give the name of the migrated database that tests clone."""
    with servers.template_database(postgres_url) as name:
        yield name


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """Give the URL of a migrated database that only this test uses."""
    with servers.fresh_database(postgres_url, template) as name:
        yield servers.with_database(postgres_url, name)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """Give the URL of a database without a schema that only this test uses."""
    with servers.fresh_database(postgres_url) as name:
        yield servers.with_database(postgres_url, name)


@pytest.fixture(scope="session")
def valkey_url(no_settings: None) -> Iterator[str]:
    """Give the URL of the Valkey server that all tests share."""
    with servers.valkey_server() as url:
        yield url


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """Give the URL of an empty Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    return valkey_url


@pytest.fixture
def environment(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Set DATABASE_URL and REDIS_URL for this process, and give the whole environment for other processes."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("STOP_ACCEPTING_AFTER_S", "0")  # else each endpoint would take 5 s to stop
    path = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    clear_settings()
    yield dict(os.environ)
    clear_settings()


def clear_settings() -> None:
    """Make worker and endpoint read their settings again."""
    worker_settings.cache_clear()
    reader_settings.cache_clear()


@pytest.fixture
def processes(environment: dict[str, str], tmp_path: Path) -> Iterator[Processes]:
    """Give what starts real processes in the test's environment. All are stopped; a failed test prints their output."""
    started = Processes(tmp_path, environment)
    yield started
    started.end()


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """Give the function that waits for a condition for a limited time."""
    return servers.wait_until
