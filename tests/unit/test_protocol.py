"""What many requests share on one connection, and what one of them may not do to the others."""

import asyncio

import pytest

from feeds.cached import protocol as wires
from feeds.cached.format import FeedsAway
from feeds.cached.protocol import RedisProtocol, pack

GET = pack(("GET", "count"))

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = []

    def write(self, data):
        self.written.append(data)

    def abort(self):
        pass


def connected():
    wire = RedisProtocol(reply_within_s=5.0)
    wire.connection_made(Transport())
    return wire


async def test_one_who_gives_up_does_not_take_the_reply_from_the_others():
    wire = connected()

    async def ask():
        return await wire.share(GET)

    impatient, patient = asyncio.create_task(ask()), asyncio.create_task(ask())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.sleep(0)
    wire.data_received(b":7\r\n")
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert await patient == [7]
    assert wire.transport.written == [GET]


async def test_what_was_refused_while_too_many_waited_is_asked_again(monkeypatch):
    wire = connected()
    monkeypatch.setattr(wires, "MAX_WAITING", 0)
    with pytest.raises(FeedsAway, match="too many"):
        await wire.share(GET)
    monkeypatch.setattr(wires, "MAX_WAITING", 10)
    again = wire.share(GET)
    await asyncio.sleep(0)
    wire.data_received(b":8\r\n")
    assert await again == [8]
