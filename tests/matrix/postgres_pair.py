"""How does a Postgres switch to its standby, while the old primary lives on as a standby of the new one?

A relay is the address that moves. A new connection reaches the server that it leads to; an old one stays where it is.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psycopg

from tests.acceptance.relay import Relay
from tests.servers import server_folder, wait_until
from worker.local import children, postgres
from worker.local.valkey import free_port

PASSWORD = "geheim"
LAGGING = {"recovery_min_apply_delay": "1h"}
"""What the old primary follows with: its pages would be an hour old."""


class Server:
    """One of the two servers, on a port of its own."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self.folder, self.log = folder, log
        self.port = free_port()
        self.url = url_of(self.port)

    def start(self, settings: Mapping[str, str] = postgres.NO_SETTINGS) -> None:
        """Start the server with its data, which is made if there is none."""
        fixed = {"listen_addresses": "127.0.0.1", "port": str(self.port), "max_connections": "100"}
        settings = {**postgres.UNSAFE_BUT_FAST, **fixed, **settings}
        self.running = postgres.start_postgres(self.folder, self.log, settings=settings, programs=debian_programs())

    def stop(self) -> None:
        """Stop the server fast: it ends its clients, and sends its standby all it has written."""
        children.stop(self.running.process, (signal.SIGINT, signal.SIGQUIT), within_s=20)


class PostgresPair:
    """A primary and its streaming standby."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self.primary, self.standby = Server(folder / "a", log), Server(folder / "b", log)
        self.primary.start()
        self.copy()
        self.standby.start()
        wait_until(self.is_streaming, within_s=20)

    def copy(self) -> None:
        """Copy the primary's data for the standby."""
        account = postgres.server_account()
        self.standby.folder.mkdir(mode=0o700)
        if account:
            os.chown(self.standby.folder, account.uid, account.gid)
        programs = debian_programs() or postgres.readable_programs(postgres.embedded_programs(), account)
        done = children.run(
            [
                *(str(programs / "pg_basebackup"), f"--pgdata={self.standby.folder}/data", "--write-recovery-conf"),
                *("--checkpoint=fast", "--no-sync", f"--dbname={self.primary.url}"),
            ],
            account,
        )
        assert done.returncode == 0, done.stderr

    def is_streaming(self) -> bool:
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            return bool(connection.execute("SELECT FROM pg_stat_replication WHERE state = 'streaming'").fetchall())

    def switch(self) -> None:
        """Stop the primary, promote the standby, and start the old primary as a standby that lags."""
        old, new = self.primary, self.standby
        old.stop()
        with psycopg.connect(new.url, autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
        account = postgres.server_account()
        mark = old.running.home / "data" / "standby.signal"
        mark.touch()
        if account:
            os.chown(mark, account.uid, account.gid)
        old.start({"primary_conninfo": f"host=127.0.0.1 port={new.port} user={postgres.USER}", **LAGGING})
        self.primary, self.standby = new, old

    def lead(self, relay: Relay, server: Server) -> None:
        """Let new connections through a relay lead to a server."""
        relay.url = relay.url._replace(netloc=f"{postgres.USER}@127.0.0.1:{server.port}")

    def end(self) -> None:
        """Stop both."""
        for server in (self.standby, self.primary):
            server.stop()
            postgres.remove_socket_folder(server.running.home)


def url_of(port: int) -> str:
    """Return the address of the database at a port. The servers ask for no password: it must not be printed."""
    return f"postgresql://{postgres.USER}:{PASSWORD}@127.0.0.1:{port}/postgres"


def debian_programs() -> Path | None:
    """Return the folder of Debian's programs, version 15 first; None for the wheel's if there are none."""
    root = Path("/usr/lib/postgresql")
    found = [root / "15/bin", *sorted(root.glob("*/bin"))]
    return next((folder for folder in found if (folder / "pg_basebackup").exists()), None)


@contextmanager
def postgres_pair() -> Iterator[PostgresPair]:
    """Give a primary and its standby."""
    with server_folder() as folder, (folder / "log").open("wb") as log:
        try:
            pair = PostgresPair(folder, log)
        except BaseException:
            print((folder / "log").read_text())
            raise
        try:
            yield pair
        finally:
            pair.end()
