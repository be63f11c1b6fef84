"""What the tests of the cached feeds ask for."""

import pytest

from tests.integration.feed_ledger import PROGRAMS


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=PROGRAMS)
def redis_program(request):
    """The server of the wheel, and Redis itself where this machine has it."""
    return request.param
