"""What does the benchmark need on this machine? A virtual environment for the peers, and wrk, which sends requests."""

import os
import shutil
import subprocess

import run
from tests.servers import CHECKOUT

PEERS = CHECKOUT / "tests" / "bench" / "peers"
VENV = CHECKOUT / ".venv-bench"
LOCK = PEERS / "requirements.txt"
APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60")


class Missing(Exception):  # noqa: N818 -- the name says what is wrong
    """Something is not on this machine and cannot be installed. The message is one line and says what to do."""


def peers_program(name: str) -> str:
    """Return the path of a program in the peers' environment. The environment is made once for each lock file."""
    run.set_up(VENV, LOCK)
    return str(VENV / "bin" / name)


def wrk() -> str:
    """Return the path of wrk. Install it from Debian if it is missing.

    Raises:
        Missing: It is not installed and cannot be installed.
    """
    if found := shutil.which("wrk"):
        return found
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Missing("wrk is not installed: install it, or run this as root on a Debian-like machine.")
    install("wrk")
    if found := shutil.which("wrk"):
        return found
    raise Missing("wrk was installed, but is not on the PATH: add its folder to the PATH.")


def install(package: str) -> None:
    """Install a Debian package that starts no service.

    Raises:
        Missing: apt-get failed.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        done = subprocess.run([*APT, *arguments], env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{package} is not installed, and apt-get cannot install it: {' '.join(done.stderr.split())}")
