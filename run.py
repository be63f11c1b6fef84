#!/usr/bin/env python3
"""Set this checkout up if needed, then run it: `python3 run.py [test | faults | bench | COMMAND] …`.

Without arguments it runs `up --demo`. The first run makes `.venv` from `requirements.lock`. This file imports only
the standard library.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

CHECKOUT = Path(__file__).resolve().parent
VENV = CHECKOUT / ".venv"
LOCK = CHECKOUT / "requirements.lock"
PYTHON_MINIMUM = (3, 11)
TEST_MODULES = {"faults": "tests.faults.long_run", "bench": "tests.bench"}
STAGES = (
    ("format", ("ruff", "format", "--check", ".")),
    ("lint", ("ruff", "check", ".")),
    ("types", ("mypy",)),
    ("tests", ("pytest",)),
)


def main(arguments: "list[str]") -> NoReturn:
    """Set up, then run all checks and tests, or replace this process by the command."""
    if sys.version_info < PYTHON_MINIMUM:
        sys.exit(f"run.py: Python 3.11 or newer is needed, this is {sys.version.split()[0]}. Run it with a newer one.")
    try:
        set_up(VENV, LOCK)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"run.py: {VENV} could not be made: {error}")
    if arguments[:1] == ["test"]:
        sys.exit(run_stages(arguments[1:]))
    arguments = arguments or ["up", "--demo"]
    module = TEST_MODULES.get(arguments[0])
    program = [module, *arguments[1:]] if module else ["worker", *arguments]
    command = [str(VENV / "bin" / "python"), "-m", *program]
    os.execve(command[0], command, environment())  # noqa: S606 -- no shell is wanted


def set_up(venv: Path, lock: Path) -> None:
    """Make a virtual environment of exactly what the lock file names, unless there is one.

    The file `made-from` is written last: it says that the environment is complete, and for which lock file. The
    checkout is locked meanwhile, so that a second process waits and then finds the environment complete.

    Raises:
        OSError: A file cannot be written.
        subprocess.SubprocessError: uv, venv or pip failed; it has printed why.
    """
    if is_complete(venv, lock):
        return
    checkout = os.open(lock.parent, os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX)
        if not is_complete(venv, lock):
            make(venv, lock)
            (venv / "made-from").write_text(digest(lock))
    finally:
        os.close(checkout)


def is_complete(venv: Path, lock: Path) -> bool:
    """Tell whether the environment was completely made from this version of the lock file."""
    try:
        made_from = (venv / "made-from").read_text()
    except OSError:
        return False
    return made_from == digest(lock) and os.access(venv / "bin" / "python", os.X_OK)


def digest(lock: Path) -> str:
    """Return the SHA-256 of the lock file."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def make(venv: Path, lock: Path) -> None:
    """Make the environment from scratch, with uv if it is installed, else with pip."""
    (venv / "made-from").unlink(missing_ok=True)
    python, uv = venv / "bin" / "python", shutil.which("uv")
    say(f"making {venv} from {lock.name} with {'uv' if uv else 'pip'}; this may take a minute")
    if uv:
        run([uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(venv)])
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    elif importlib.util.find_spec("ensurepip"):
        run([sys.executable, "-m", "venv", "--clear", str(venv)])
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-input"]
    else:
        sys.exit("run.py: this Python cannot make virtual environments: install uv, or your system's python3-venv.")
    run([*install, "--require-hashes", "--only-binary", ":all:", "--no-deps", "--requirement", str(lock)])
    say("done")


def run(command: "list[str]") -> None:
    """Run a program without the user's Python settings."""
    ours = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    subprocess.run(command, check=True, env={**ours, "PIP_USER": "0"})


def environment() -> "dict[str, str]":
    """Return the environment variables of our programs: they import from the checkout, not from the current folder."""
    ours = {"PYTHONPATH": str(CHECKOUT), "PYTHONSAFEPATH": "1"}
    state = os.environ.get("USAGE_FEEDS_STATE") or str(CHECKOUT / ".usage-feeds")
    return {**os.environ, **ours, "USAGE_FEEDS_STATE": state}


def run_stages(pytest_arguments: "list[str]") -> int:
    """Run the stages format, lint, types and tests. Stop at the first that fails, name it and return its exit code."""
    python = str(VENV / "bin" / "python")
    for name, command in STAGES:
        more = pytest_arguments if name == "tests" else []
        say(" ".join([*command, *more]))
        code = subprocess.run([python, "-m", *command, *more], check=False, cwd=CHECKOUT, env=environment()).returncode
        if code:
            say(f"the {name} stage failed")
            return code
    return 0


def say(words: str) -> None:
    """Print a line of progress to standard error."""
    print(f"run.py: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
