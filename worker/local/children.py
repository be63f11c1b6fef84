"""How does a process start that cannot outlive this one, and how does it end?

A child gets a signal from the kernel when its parent dies (Linux), and its whole process group,
grandchildren too, gets it from the guard, which notices the same by a pipe (everywhere).
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
"""What to do while waiting, for about that many seconds: sleep, or pass on what children print."""

PR_SET_PDEATHSIG = 1
held_by_guard: list[int] = []
POLL_S = 0.05


class CannotStart(UnusableSetup):
    """A part of `up` cannot start. The message is one line that says what to do."""


class Account(NamedTuple):
    """A user of this machine."""

    name: str
    uid: int
    gid: int


class AsAccount(TypedDict):
    """The arguments of subprocess that say as whom a program runs; None is as ourselves."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def account_named(name: str) -> Account | None:
    """Return the account of that name, or None."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def have_guard_hold(file: int) -> None:
    """Let the guard keep a file open, and its lock, until our last child is gone. Call it before the first start."""
    held_by_guard.append(file)


@cache
def guard() -> Process:
    """Start the guard of this process's children, once."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/", pass_fds=held_by_guard)  # noqa: S603 -- our own
    atexit.register(process.communicate)  # it ends when its pipe does
    return process


def tell_guard(group: int, number: int) -> None:
    """Have the guard signal a process group when this process dies; 0 forgets it."""
    pipe = guard().stdin
    assert pipe
    try:
        pipe.write(b"%d %d\n" % (group, number))
        pipe.flush()
    except BrokenPipeError:
        print("the guard of the child processes has died; they have the kernel's word alone", file=sys.stderr)  # noqa: T201


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
    """Start a child in a session of its own, which gets `death_signal` when this process dies.

    Call it from the main thread alone: the kernel's word is about the thread that forked.
    """
    guard()  # before the child, lest it hold the child's own pipes
    process = subprocess.Popen(  # noqa: S603 -- no shell, and the words are ours
        command,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509 -- no threads here, and it only makes two calls
        **as_account(account),
    )
    tell_guard(process.pid, death_signal)
    return process


def as_account(account: Account | None) -> AsAccount:
    """Return subprocess's arguments for running as an account, or as ourselves."""
    if account is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return what a fresh child calls so that the kernel signals it when its parent dies, where it can."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:
            os._exit(1)

    return ask_kernel


def run(command: Sequence[str], account: Account | None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as an account, in an environment that no PG* or locale variable can disturb."""
    return subprocess.run(  # noqa: S603 -- no shell, and the words are ours
        command, check=False, cwd="/", env=bare_environment(), capture_output=True, text=True, **as_account(account)
    )


def bare_environment() -> dict[str, str]:
    """Return an environment that holds nothing of the user's but the path."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def wait_for(condition: Callable[[], object], within_s: float, idle: Idle = time.sleep) -> bool:
    """Wait until a condition holds; False when it does not within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        idle(POLL_S)
    return True


def stop(process: Process, signals: Sequence[signal.Signals], within_s: float, idle: Idle = time.sleep) -> bool:
    """End a child by one signal after the other, `within_s` seconds each, its group by SIGKILL at last.

    False when SIGKILL was needed for the child itself.
    """
    ended = process.poll() is not None
    for number in signals:
        if ended:
            break
        process.send_signal(number)
        ended = wait_for(lambda: process.poll() is not None, within_s, idle)
    end_group(process)
    return ended


def end_group(process: Process) -> None:
    """Kill what is left of a child's process group, and forget it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    tell_guard(process.pid, 0)
