"""What requests share on one connection, and what one of them must not do to the others."""

import asyncio

import pytest

from feeds.cached import protocol
from feeds.cached.format import FeedsAway
from feeds.cached.protocol import RedisProtocol, pack

GET = pack(("GET", "count"))

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Transport(asyncio.Transport):
    """Stores what is written."""

    def __init__(self):
        super().__init__()
        self.written = []

    def write(self, data):
        self.written.append(data)

    def abort(self):
        pass


def connect():
    connection = RedisProtocol(reply_within_s=5.0)
    connection.connection_made(Transport())
    return connection


async def test_a_cancelled_caller_does_not_take_the_shared_reply_from_the_others():
    connection = connect()

    async def get():
        return await connection.send_shared(GET)

    cancelled, other = asyncio.create_task(get()), asyncio.create_task(get())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    connection.data_received(b":7\r\n")
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await other == [7]
    assert connection.transport.written == [GET]


async def test_a_shared_command_that_was_refused_because_too_many_wait_is_sent_for_the_next_caller(monkeypatch):
    connection = connect()
    monkeypatch.setattr(protocol, "MAX_WAITING", 0)
    with pytest.raises(FeedsAway, match="too many"):
        await connection.send_shared(GET)
    monkeypatch.setattr(protocol, "MAX_WAITING", 10)
    again = connection.send_shared(GET)
    await asyncio.sleep(0)
    connection.data_received(b":8\r\n")
    assert await again == [8]
