"""Fixtures for the tests of the cached feeds and of the endpoint."""

import psycopg
import pytest
from starlette.testclient import TestClient

from feeds.endpoint import app
from feeds.keys import create_key
from tests.integration.endpoint_requests import MOVEMENTS, headers_of
from tests.integration.feed_ledger import PROGRAMS
from tests.seed import MIXED, seed


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=PROGRAMS)
def redis_program(request):
    """The wheel's server, and Redis itself if this machine has it."""
    return request.param


@pytest.fixture
def seeded(environment):
    """Give a connection to a ledger with movements of `org_a` and fewer of `org_b`."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", MOVEMENTS)
        seed(connection, "org_b", MIXED)
        yield connection


@pytest.fixture
def client(seeded):
    """Give a client of the endpoint, which runs in this process and reads that ledger."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def bearer(seeded):
    """Give the headers of an organisation's key."""
    return headers_of(create_key(seeded, org_id="org_a")[1])
