"""How do all processes of one machine start, live and stop together?

One thread: what waits, passes on what the children print meanwhile.
"""

import os
import selectors
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from worker.local.children import CannotStart, Process, end_group, start, stop, wait_for

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESTARTS = 5
RESTARTS_WITHIN_S = 60.0
RESTART_AFTER_S = 1.0
READY_WITHIN_S = 60.0
SERVER_WITHIN_S = 20.0
CHUNK_BYTES = 1 << 16
NAME_WIDTH = 8
TAIL_BYTES = 1 << 12


class Stopped(BaseException):
    """Somebody wants us to stop: Ctrl-C, SIGTERM, or a terminal that closed."""


class ChildDied(CannotStart):
    """A child died and will not be started again. Its last lines say why."""


@dataclass
class Child:
    """One process that we keep. Without a `command` its death is the end of all."""

    name: str
    process: Process
    signals: Sequence[signal.Signals]
    within_s: float
    command: Sequence[str] = ()
    after: Callable[[], object] = bool
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS + 1))
    start_again_at: float | None = None


class Supervisor:
    """The children of one `up`, in the order in which they were started."""

    def __init__(self, folder: Path) -> None:
        """Take the state folder: the children's current folder too, as nothing to import is there."""
        self.folder = folder
        self.children: list[Child] = []
        self.selector = selectors.DefaultSelector()
        self.printed: dict[str, bytes] = {}

    @contextmanager
    def output(self, name: str) -> Iterator[int]:
        """Give the writing end of a pipe whose lines are passed on under a name."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self.selector.register(reading, selectors.EVENT_READ, [name, b""])
        try:
            yield writing
        finally:
            os.close(writing)

    def keep(
        self, name: str, process: Process, signals: Sequence[signal.Signals], *, after: Callable[[], object] = bool
    ) -> None:
        """Take on a server that was started elsewhere; `after` cleans up behind it."""
        self.children.append(Child(name, process, signals, SERVER_WITHIN_S, after=after))

    def start(self, name: str, command: Sequence[str], *, signals: Sequence[signal.Signals], within_s: float) -> Child:
        """Start a process, and again whenever it dies, within bounds."""
        child = Child(name, self.spawn(name, command), signals, within_s, command)
        self.children.append(child)
        return child

    def spawn(self, name: str, command: Sequence[str]) -> Process:
        """Start a process whose output is passed on."""
        with self.output(name) as writing:
            return start(command, cwd=self.folder, env=environment(self.folder), output=writing)

    def wait_until_ready(self, child: Child, is_ready: Callable[[], bool]) -> None:
        """Wait until a child is ready; raise CannotStart if it dies instead, or takes too long."""

        def is_settled() -> bool:
            return child.process.poll() is not None or is_ready()

        if not wait_for(is_settled, READY_WITHIN_S, self.pump):
            raise CannotStart(f"The {child.name} is not ready after {READY_WITHIN_S:.0f} s: its lines above say why.")
        if child.process.poll() is not None:
            self.drain()
            raise CannotStart(f"The {child.name} {ending(child.process)} at once: its lines above say why.")

    def watch(self) -> NoReturn:
        """Keep all children alive until a signal, or a death that cannot be mended, raises."""
        while True:
            self.pump(0.5)
            for child in self.children:
                self.revive(child)

    def revive(self, child: Child) -> None:
        """Start a dead child again, a moment later; raise ChildDied for a server, or one that dies too often."""
        now = time.monotonic()
        if child.start_again_at is not None:
            if now >= child.start_again_at:
                child.start_again_at = None
                child.process = self.spawn(child.name, child.command)
            return
        if child.process.poll() is None:
            return
        end_group(child.process)
        self.drain()
        child.deaths.append(now)
        recent = sum(now - death < RESTARTS_WITHIN_S for death in child.deaths)
        said = f"{child.name} {ending(child.process)}"
        if not child.command:
            raise ChildDied(f"The {said}: all is stopped; its lines above say why.")
        if recent > RESTARTS:
            raise ChildDied(f"The {said}, {recent} times within a minute: all is stopped; its lines above say why.")
        self.say(f"{said}: starting it again ({recent} of {RESTARTS} within a minute)")
        child.start_again_at = now + RESTART_AFTER_S

    def stop(self) -> None:
        """Stop all children, the last started first, each within its time."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(self.children):
            if child.process.poll() is None:
                self.say(f"stopping {child.name}")
            if not stop(child.process, child.signals, child.within_s, self.pump):
                self.say(f"{child.name} had to be killed")
            child.after()
            self.drain()

    def pump(self, seconds: float) -> None:
        """Pass on what children print, waiting so long for the first of it."""
        for key, _ in self.selector.select(seconds):
            try:
                chunk = os.read(key.fd, CHUNK_BYTES)
            except BlockingIOError:
                continue
            name, unfinished = key.data
            *lines, key.data[1] = (unfinished + chunk).split(b"\n")
            if not chunk:
                lines = [unfinished] if unfinished else []
                self.selector.unregister(key.fd)
                os.close(key.fd)
            self.print(name, lines)

    def drain(self) -> None:
        """Pass on what is waiting to be passed on, for a moment at most."""
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline and self.selector.get_map() and self.selector.select(0):
            self.pump(0)

    def has_printed(self, name: str, words: bytes) -> bool:
        """Tell whether a child's line with these words went by lately."""
        return words in self.printed.get(name, b"")

    def say(self, words: str) -> None:
        """Print a line of our own."""
        self.print("up", [words.encode()])

    def print(self, name: str, lines: Sequence[bytes]) -> None:
        """Print lines under a name, on standard error. Where nobody reads them any more, they are dropped."""
        if not lines:
            return
        self.printed[name] = b"\n".join([self.printed.get(name, b"")[-TAIL_BYTES:], *lines])
        prefix = f"{name:<{NAME_WIDTH}} | ".encode()
        with suppress(OSError):
            sys.stderr.buffer.write(b"".join(prefix + line + b"\n" for line in lines))
            sys.stderr.buffer.flush()


def environment(state: Path) -> dict[str, str]:
    """Return the children's environment: ours, and where to import from and to find each other."""
    checkout = str(Path(__file__).parents[2])
    path = [checkout, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ours = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours, "USAGE_FEEDS_STATE": str(state)}


def ending(process: Process) -> str:
    """Say how a process ended."""
    code = process.returncode
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into Stopped."""

    def raise_stopped(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Stopped

    before = {number: signal.signal(number, raise_stopped) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
