"""The worker's connection to the feeds' Redis.

One connection, no pool, no retries: cache keys carry the server's ids, so a command must reach exactly the server
for which its keys were built, or fail.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feeds.addresses.redis import parse_redis
from feeds.cached.format import FeedsAway, Server, read_server
from feeds.cached.scripts import Command, Script

if TYPE_CHECKING:
    from redis.connection import ConnectionInterface

CONNECT_WITHIN_S = 0.5
REPLY_WITHIN_S = 0.5


class WorkerConnection:
    """A connection to the feeds' Redis, for one thread of one process: create it after a fork.

    `away_since` is when the server was first seen to be away; `epoch_since` is by when the known epoch had begun. Both
    are on the monotonic clock.
    """

    def __init__(self, url: str) -> None:
        self.pool = parse_redis(url, "FEEDS_REDIS_URL").pool(
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_WITHIN_S,
            socket_timeout=REPLY_WITHIN_S,
            health_check_interval=0,
        )
        self.connection: ConnectionInterface | None = None
        self.known: Server | None = None
        self.away_since: float | None = None
        self.epoch: UUID | None = None
        self.epoch_since = float("-inf")

    def note_epoch(self, epoch: UUID, since: float) -> None:
        """Note that an epoch had begun by `since`, on the monotonic clock, unless it is known already."""
        if epoch != self.epoch:
            self.epoch, self.epoch_since = epoch, since

    def server(self) -> Server:
        """Return the server at the other end; connects if there is no connection. Raises `FeedsAway`."""
        if self.known is None:
            try:
                self.connection = self.pool.make_connection()
                self.connection.connect()  # type: ignore[no-untyped-call]
                self.known = self._require_master(self._exchange([("INFO", "server"), ("INFO", "replication")]))
            except (redis.RedisError, OSError, FeedsAway) as error:
                self.close()
                raise FeedsAway(str(error)) from error
        return self.known

    def send(self, commands: Sequence[Command]) -> list[object]:
        """Send commands in one round trip to the server that `server` returned. Error replies are values.

        Raises `FeedsAway` if that server is gone, or is a different one by the time of the last command: a connection
        survives a failover and the failback.
        """
        if self.known is None:
            raise FeedsAway("not connected")
        try:
            *replies, replication = self._exchange([*commands, ("INFO", "replication")])
            server = self._require_master([f"run_id:{self.known.run_id}\r\n".encode(), replication])
        except (redis.ConnectionError, redis.TimeoutError, OSError, FeedsAway) as error:
            self.close()
            raise FeedsAway(str(error)) from error
        if server != self.known:
            self.close()
            raise FeedsAway("a failover has happened")
        return replies

    def run_script(
        self, script: Script, calls: Sequence[tuple[Sequence[bytes], Sequence[str | bytes | int]]]
    ) -> list[object]:
        """Run a script once for each pair of keys and arguments, in one round trip; loads it first if needed."""

        def commands(name: str, body: str) -> list[Command]:
            return [(name, body, len(keys), *keys, *arguments) for keys, arguments in calls]

        replies = self.send(commands("EVALSHA", script.digest))
        if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
            self.send([("SCRIPT", "LOAD", script.text)])
            replies = self.send(commands("EVALSHA", script.digest))
        return replies

    def close(self) -> None:
        """Close the connection; the next call of `server` opens another."""
        connection, self.connection, self.known = self.connection, None, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]

    def _exchange(self, commands: Sequence[Command]) -> list[object]:
        """Send commands and read as many replies. Never connects."""
        if self.connection is None or not self.connection.is_connected:
            raise FeedsAway("not connected")
        self.connection.send_packed_command(self.connection.pack_commands(commands), check_health=False)  # type: ignore[no-untyped-call]
        return [self._read_reply() for _ in commands]

    def _read_reply(self) -> object:
        """Read one reply; an error reply is a value unless it ends the connection."""
        assert self.connection is not None
        try:
            return self.connection.read_response()
        except redis.ResponseError as error:
            return error

    def _require_master(self, replies: Sequence[object]) -> Server:
        """Return the server that INFO describes. Raises `FeedsAway` unless it is a master."""
        server = read_server(b"".join(reply for reply in replies if isinstance(reply, bytes)))
        if server is None:
            refused = [str(reply) for reply in replies if isinstance(reply, redis.RedisError)]
            raise FeedsAway("; ".join(refused) or "not a master")
        return server
