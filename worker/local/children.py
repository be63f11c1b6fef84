"""How does a process start children that cannot outlive it, and how does it end them?

Two mechanisms cover the death of the parent. On Linux the kernel signals each child. On every system the guard, which
sees the end of a pipe, signals each child's whole process group, grandchildren included.
"""

import atexit
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple, TypedDict

from feeds.schema import UnusableSetup

Process = subprocess.Popen[bytes]
Idle = Callable[[float], object]
"""What to do while waiting, for about that many seconds: sleep, or forward the children's output."""

PR_SET_PDEATHSIG = 1
guard_files: list[int] = []
"""File descriptors that the guard inherits when it starts."""
POLL_S = 0.05


class CannotStart(UnusableSetup):
    """A part of `up` cannot start. The message is one line that says what to do."""


class Account(NamedTuple):
    """A user of this machine."""

    name: str
    uid: int
    gid: int


class AccountArguments(TypedDict):
    """The arguments of `subprocess` that select the account; None means our own."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def find_account(name: str) -> Account | None:
    """Return the account of that name, or None."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def pass_to_guard(file: int) -> None:
    """Let the guard hold a file open, and with it the file's lock, until our last child has ended.

    Call it before the first child starts: the guard inherits the file when it starts.
    """
    guard_files.append(file)


@cache
def guard() -> Process:
    """Start the guard of this process's children, once."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/", pass_fds=guard_files)  # noqa: S603 -- our own file
    atexit.register(process.communicate)  # closes the pipe, which ends the guard
    return process


def register_with_guard(group: int, signal_number: int) -> None:
    """Let the guard signal a process group when this process dies; signal 0 removes the group."""
    pipe = guard().stdin
    assert pipe
    try:
        pipe.write(b"%d %d\n" % (group, signal_number))
        pipe.flush()
    except BrokenPipeError:
        print(  # noqa: T201 -- standard error, as the supervisor's own lines
            "The guard of the child processes has died. If this process is killed now, some of them may survive it.",
            file=sys.stderr,
        )


def start(  # noqa: PLR0913 -- all but the first by name
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: int | IO[bytes],
    death_signal: signal.Signals = signal.SIGKILL,
    account: Account | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
) -> Process:
    """Start a child in a session of its own.

    Call it from the main thread only: the kernel signals the child when the thread that forked it ends.

    Args:
        command: The program and its arguments.
        cwd: The child's current folder.
        env: The child's whole environment.
        output: Receives standard output and standard error.
        death_signal: What the child gets when this process dies.
        account: The user that the child runs as; None for our own.
        stdin: The child's standard input.
    """
    guard()  # started before the child, so that it does not inherit the child's pipes
    process = subprocess.Popen(  # noqa: S603 -- no shell, and no word is a user's
        command,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509 -- no threads here, and it makes only two calls
        **run_as(account),
    )
    register_with_guard(process.pid, death_signal)
    return process


def run_as(account: Account | None) -> AccountArguments:
    """Return the arguments of `subprocess` that run a program as an account, or as ourselves."""
    if account is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """Return the function by which a new child requests a signal for its parent's death; None outside Linux."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def request_death_signal() -> None:
        prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return request_death_signal


def run(command: Sequence[str], account: Account | None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as an account. The user's PG* and locale variables cannot change what it does."""
    return subprocess.run(  # noqa: S603 -- no shell, and no word is a user's
        command, check=False, cwd="/", env=bare_environment(), capture_output=True, text=True, **run_as(account)
    )


def bare_environment() -> dict[str, str]:
    """Return an environment that takes only PATH from the user's."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def wait_for(condition: Callable[[], object], within_s: float, idle: Idle = time.sleep) -> bool:
    """Wait until a condition holds; return False if it does not hold within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        idle(POLL_S)
    return True


def stop(process: Process, signals: Sequence[signal.Signals], within_s: float, idle: Idle = time.sleep) -> bool:
    """End a child, then kill what is left of its process group.

    Args:
        process: The child.
        signals: Sent one after the other, until the child ends.
        within_s: How long to wait after each signal.
        idle: Called while waiting.

    Returns:
        False if the child itself had to be killed.
    """
    ended = process.poll() is not None
    for signal_number in signals:
        if ended:
            break
        process.send_signal(signal_number)
        ended = wait_for(lambda: process.poll() is not None, within_s, idle)
    end_group(process)
    return ended


def end_group(process: Process) -> None:
    """Kill what is left of a child's process group, and remove the group from the guard."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    register_with_guard(process.pid, 0)
