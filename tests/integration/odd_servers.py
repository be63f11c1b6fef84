"""How does a test start a Valkey that is set up in a way of its own?"""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tests.servers import server_folder, wait_until
from worker.local import children
from worker.local.valkey import bare_environment, embedded_program, free_port

PASSWORD = "p@ss/word#1 %"
QUOTED = "p%40ss%2Fword%231%20%25"


@contextmanager
def valkey(*options: str) -> Iterator[None]:
    """Run a Valkey with these options."""
    with server_folder() as folder, (folder / "log").open("wb") as log:
        command = [str(embedded_program()), "--save", "", "--dir", str(folder), *options]
        process = children.start(command, cwd=folder, env=bare_environment(), output=log)
        try:
            yield
        finally:
            children.stop(process, (signal.SIGTERM,), within_s=10)


@contextmanager
def valkey_on_a_socket() -> Iterator[tuple[str, redis.Redis]]:
    """Give the address of a user in database 3 of a Valkey on a Unix socket only, and a client of its database 0."""
    with server_folder() as folder:
        path = f"{folder}/redis.sock"
        with valkey("--port", "0", "--unixsocket", path, "--requirepass", "admin"):
            client = redis.Redis(unix_socket_path=path, password="admin")
            wait_until(lambda: is_answering(client))
            client.acl_setuser("ours", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"], categories=["+@all"])  # fmt: skip
            with client:
                yield f"unix://ours:{QUOTED}@{path}?db=3&socket_timeout=3", client


@contextmanager
def cluster_node() -> Iterator[str]:
    """Give the address of a Redis Cluster's only node, which has all slots."""
    port, bus = free_port(), free_port()  # without a bus of its own it is the port + 10,000, which may lie above 65,535
    with valkey("--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(bus)):
        with redis.Redis(port=port) as client:
            wait_until(lambda: is_answering(client))
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def silent_server() -> Iterator[int]:
    """Give the port of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def is_answering(client: redis.Redis) -> bool:
    """Tell whether a server answers."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
