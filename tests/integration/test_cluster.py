"""Does the cache of feeds take a node of a Redis Cluster for what it is?"""

import uuid
from contextlib import closing

import pytest
import redis

from feeds.cached import writer
from feeds.cached.format import FeedsAway, Server
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.worker_connection import WorkerConnection
from tests.integration.odd_servers import cluster_node


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_neither_the_worker_nor_the_endpoint_uses_a_node_of_a_cluster_for_the_feeds():
    with cluster_node() as url:
        with closing(WorkerConnection(url)) as connection, pytest.raises(FeedsAway, match="Redis Cluster"):
            connection.server()
        multiplexer = Multiplexer(url)
        await multiplexer.start()
        assert multiplexer.server is None
        assert "Redis Cluster" in multiplexer.last_error
        await multiplexer.close()


def test_moved_is_not_the_reply_that_a_key_exists():
    class Moved:
        def server(self):
            return Server("run", "replication")

        def send(self, commands):
            return [redis.exceptions.MovedError("7 127.0.0.1:1") for _ in commands]

    with pytest.raises(FeedsAway):
        writer.append(Moved(), uuid.uuid4(), {"org_a": []})
