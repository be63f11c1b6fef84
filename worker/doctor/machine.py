"""Which facts of this machine matter?"""

import ipaddress
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from worker.doctor.finding import Finding, fine, note

SHARED_MEMORY_MIN = 256 * 2**20
"""A parallel query of `verify` may need so much of /dev/shm. Containers have 64 MB unless they are given more."""


def judge_programs() -> list[Finding]:
    """Say which versions run here."""
    try:
        ours = version("usage-feeds")
    except PackageNotFoundError:
        ours = "from a checkout"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("celery", "redis", "psycopg"))
    return [fine("versions", f"usage-feeds {ours} on Python {platform.python_version()}, with {libraries}.")]


def is_this_machine(host: str) -> bool:
    """Tell whether a host is a socket's folder or a loopback address."""
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_shared_memory(process_id: int) -> int | None:
    """Return the size of /dev/shm in bytes if this process of Postgres runs here, else None.

    A port of a container may be mapped to this machine's loopback; then the process has another number here.
    """
    try:
        program = Path(f"/proc/{process_id}/comm").read_text(encoding="utf-8", errors="replace")
        return shutil.disk_usage("/dev/shm").total if program.startswith("postgres") else None  # noqa: S108 -- Linux's name
    except OSError:
        return None


def judge_shared_memory(kind: str, size: int | None) -> list[Finding]:
    """Judge the memory that parallel queries of Postgres share.

    Args:
        kind: Postgres's setting `dynamic_shared_memory_type`.
        size: The size of /dev/shm in bytes, None if Postgres runs on another machine.
    """
    why = "If it is too small for a parallel query, `verify` of a large ledger starts again without, and takes longer."
    if kind != "posix":
        return []
    if size is None:
        what = "The size of Postgres's /dev/shm cannot be seen from here."
        return [note("shared_memory", what, why, "If Postgres runs in a container, give it `shm_size: 256mb`.")]
    if size < SHARED_MEMORY_MIN:
        what = f"Postgres's /dev/shm holds {size / 2**20:,.0f} MiB."
        to_do = "Make it 256 MiB: `shm_size: 256mb` for a container, or remount /dev/shm with size=256m."
        return [note("shared_memory", what, why, to_do)]
    return [fine("shared_memory", f"Postgres's /dev/shm holds {size / 2**20:,.0f} MiB.")]
