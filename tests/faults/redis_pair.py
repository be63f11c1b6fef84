"""How does a Redis fail over whose old primary lives on as a replica?

Two Valkeys listen on Unix sockets. A symbolic link leads to the primary's, as a name of a managed Redis does: a new
connection reaches the new primary, an old one stays with the old server.
"""

import os
import signal
import time
from pathlib import Path
from typing import IO, NamedTuple

import redis

from worker.local import children, valkey
from worker.local.valkey import Address, Valkey, free_port

CAUGHT_UP_WITHIN_S = 20.0


class Server(NamedTuple):
    """One of the two servers."""

    name: str
    running: Valkey


class RedisPair:
    """A primary, its replica, and one address that leads to the primary."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self.folder, self.log = folder, log
        self.password = "of-both"
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).mkdir()
            valkey.store_address(folder / name, Address(free_port(), self.password))
        self.primary, self.replica = self.start("a"), self.start("b")
        self.point_to_primary()
        self.follow(self.replica)
        self.url = f"unix://default:{self.password}@{folder}/primary.sock?db=0"

    def start(self, name: str) -> Server:
        settings = (f"unixsocket {self.folder}/{name}.sock", "unixsocketperm 777", f"masterauth {self.password}")
        return Server(name, valkey.start_valkey(self.folder / name, self.log, settings=settings))

    def follow(self, replica: Server) -> None:
        """Make a server the replica of the primary."""
        primary = valkey.load_address(self.folder / self.primary.name)
        with redis.Redis.from_url(replica.running.url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)

    def point_to_primary(self) -> None:
        """Let new connections lead to the primary."""
        link = self.folder / "new.sock"
        link.symlink_to(self.folder / f"{self.primary.name}.sock")
        link.replace(self.folder / "primary.sock")

    def kill_primary(self) -> None:
        """Kill the primary, and start it again as the primary."""
        process = self.primary.running.process
        os.kill(process.pid, signal.SIGKILL)
        children.end_group(process)
        self.primary = self.start(self.primary.name)

    def fail_over(self) -> bool:
        """Let the replica take over once it has all data. Returns False if it does not get that far in time."""
        with redis.Redis.from_url(self.primary.running.url) as client:
            deadline = time.monotonic() + CAUGHT_UP_WITHIN_S
            while not has_taken_over(client):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
        self.primary, self.replica = self.replica, self.primary
        self.point_to_primary()
        return True

    def end(self) -> None:
        """Stop both."""
        for server in (self.replica, self.primary):
            children.stop(server.running.process, valkey.SIGNALS, within_s=20)


def has_taken_over(client: redis.Redis) -> bool:
    """Ask a primary to hand over to its replica; tell whether it has become the replica."""
    state = client.info("replication")
    if state["role"] == "slave":
        return True
    try:
        if state["master_failover_state"] == "no-failover" and state["connected_slaves"]:
            client.execute_command("FAILOVER", "TIMEOUT", 5000)
    except redis.ResponseError:
        pass  # the replica has not caught up yet
    return False
