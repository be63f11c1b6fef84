"""What do the peers need on this machine? An environment of their own, and wrk, which drives the readers."""

import os
import shutil
import subprocess

import run
from tests.servers import CHECKOUT

PEERS = CHECKOUT / "tests" / "bench" / "peers"
VENV = CHECKOUT / ".venv-bench"
LOCK = PEERS / "requirements.txt"
APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60")


class Missing(Exception):  # noqa: N818 -- that is what it is
    """Something is not on this machine and cannot be installed. The message is one line that says what to do."""


def peers_program(name: str) -> str:
    """Return the path of a program of the peers' environment, which is made once for each lock file."""
    run.set_up(VENV, LOCK)
    return str(VENV / "bin" / name)


def wrk() -> str:
    """Return the path of wrk, installed from Debian where it is missing. Raises Missing."""
    if found := shutil.which("wrk"):
        return found
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Missing("wrk is not installed: install it, or run this as root on a Debian-like machine.")
    install("wrk")
    if found := shutil.which("wrk"):
        return found
    raise Missing("wrk was installed, but is not on the PATH.")


def install(package: str) -> None:
    """Install a Debian package that brings no service. Raises Missing."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        done = subprocess.run([*APT, *arguments], env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{package} is not installed, and apt-get could not: {' '.join(done.stderr.split())}")
