"""How do all processes of one machine start, run and stop together?

One thread does all: while it waits, it forwards the children's output.
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
RESTARTS_MAX = 5
RESTARTS_WITHIN_S = 60.0
RESTART_AFTER_S = 1.0
READY_WITHIN_S = 60.0
SERVER_STOPS_WITHIN_S = 20.0
FLUSH_WITHIN_S = 0.2
CHUNK_BYTES = 1 << 16
NAME_WIDTH = 8
TAIL_BYTES = 1 << 12
"""How much of each child's output is retained for `has_printed`."""


class StopRequested(BaseException):
    """A signal asks this process to stop: Ctrl-C, SIGTERM, or a closed terminal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class ChildDied(CannotStart):
    """A child died and is not restarted. Its last lines say why."""


@dataclass
class Child:
    """A supervised process. If it has no `command`, it cannot be restarted and its death stops everything.

    `signals` stop it, one after the other, each within `within_s` seconds. On Ctrl-C the first is `hurry`, if there is
    one. `clean_up` runs after it was stopped.
    """

    name: str
    process: Process
    signals: Sequence[signal.Signals]
    within_s: float
    command: Sequence[str] = ()
    hurry: signal.Signals | None = None
    clean_up: Callable[[], object] = bool
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_MAX + 1))
    restart_at: float | None = None


class Supervisor:
    """The children of one `up`, in the order in which they were started."""

    def __init__(self, folder: Path) -> None:
        """Take the state folder. It is also the children's current folder: it holds nothing that Python can import."""
        self.folder = folder
        self.children: list[Child] = []
        self.selector = selectors.DefaultSelector()
        self.printed: dict[str, bytes] = {}

    @contextmanager
    def output_pipe(self, name: str) -> Iterator[int]:
        """Give the writing end of a pipe whose lines are forwarded under a name."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self.selector.register(reading, selectors.EVENT_READ, [name, b""])
        try:
            yield writing
        finally:
            os.close(writing)

    def add_server(
        self, name: str, process: Process, signals: Sequence[signal.Signals], *, clean_up: Callable[[], object] = bool
    ) -> None:
        """Supervise a server that runs already; `clean_up` removes what it leaves behind when it stops."""
        self.children.append(Child(name, process, signals, SERVER_STOPS_WITHIN_S, clean_up=clean_up))

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        signals: Sequence[signal.Signals],
        within_s: float,
        hurry: signal.Signals | None = None,
    ) -> Child:
        """Start a process that `watch` restarts if it dies.

        Args:
            name: What its lines of output start with.
            command: The program and its arguments.
            signals: Stop it, one after the other.
            within_s: How long to wait after each signal.
            hurry: Stops it in place of the first signal if a person waits: on Ctrl-C.
        """
        child = Child(name, self.spawn(name, command), signals, within_s, command, hurry)
        self.children.append(child)
        return child

    def spawn(self, name: str, command: Sequence[str]) -> Process:
        """Start a process whose output is forwarded."""
        with self.output_pipe(name) as writing:
            return start(command, cwd=self.folder, env=child_environment(self.folder), output=writing)

    def wait_until_ready(self, child: Child, is_ready: Callable[[], bool]) -> None:
        """Wait until a child is ready; raise CannotStart if it dies first or is not ready in time."""

        def is_settled() -> bool:
            return child.process.poll() is not None or is_ready()

        if not wait_for(is_settled, READY_WITHIN_S, self.forward_output):
            raise CannotStart(f"The {child.name} is not ready after {READY_WITHIN_S:.0f} s: see its output above.")
        if child.process.poll() is not None:
            self.flush_output()
            raise CannotStart(
                f"The {child.name} {format_ending(child.process)} before it was ready: see its output above."
            )

    def watch(self) -> NoReturn:
        """Restart children that die, until StopRequested or ChildDied is raised."""
        while True:
            self.forward_output(0.5)
            for child in self.children:
                self.restart_if_dead(child)

    def restart_if_dead(self, child: Child) -> None:
        """Restart a dead child after a moment; raise ChildDied for a server, or for a child that dies too often."""
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                child.restart_at = None
                child.process = self.spawn(child.name, child.command)
            return
        if child.process.poll() is None:
            return
        end_group(child.process)
        self.flush_output()
        child.deaths.append(now)
        recent = sum(now - death < RESTARTS_WITHIN_S for death in child.deaths)
        ending = f"{child.name} {format_ending(child.process)}"
        if not child.command:
            raise ChildDied(f"The {ending}: everything is stopped. See its output above.")
        if recent > RESTARTS_MAX:
            raise ChildDied(
                f"The {ending}, {recent} times within a minute: everything is stopped. See its output above."
            )
        self.report(f"{ending}: restarting it (restart {recent} of at most {RESTARTS_MAX} within a minute)")
        child.restart_at = now + RESTART_AFTER_S

    def stop_on_exit(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Stop all children because of `error`. The signature is that of a context manager's exit."""
        self.stop(is_hurried=isinstance(error, StopRequested) and error.signal_number == signal.SIGINT)

    def stop(self, *, is_hurried: bool = False) -> None:
        """Stop all children, the last started first, each within its time. `is_hurried`: a person waits."""
        for signal_number in STOP_SIGNALS:
            signal.signal(signal_number, signal.SIG_IGN)
        for child in reversed(self.children):
            if child.process.poll() is None:
                self.report(f"stopping {child.name}")
            hurry = [child.hurry] if is_hurried and child.hurry else []
            if not stop(child.process, [*hurry, *child.signals], child.within_s, self.forward_output):
                self.report(f"{child.name} did not stop in time and was killed")
            child.clean_up()
            self.flush_output()

    def forward_output(self, seconds: float) -> None:
        """Print what children printed; wait up to `seconds` for the first of it."""
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
            self.print_lines(name, lines)

    def flush_output(self) -> None:
        """Print the output that already waits in the pipes, for at most a moment."""
        deadline = time.monotonic() + FLUSH_WITHIN_S
        while time.monotonic() < deadline and self.selector.get_map() and self.selector.select(0):
            self.forward_output(0)

    def has_printed(self, name: str, words: bytes) -> bool:
        """Return whether a child has recently printed a line with these words."""
        return words in self.printed.get(name, b"")

    def report(self, message: str) -> None:
        """Print a line of our own."""
        self.print_lines("up", [message.encode()])

    def print_lines(self, name: str, lines: Sequence[bytes]) -> None:
        """Print lines under a name on standard error. If the terminal is gone, they are dropped."""
        if not lines:
            return
        self.printed[name] = b"\n".join([self.printed.get(name, b"")[-TAIL_BYTES:], *lines])
        prefix = f"{name:<{NAME_WIDTH}} | ".encode()
        with suppress(OSError):
            sys.stderr.buffer.write(b"".join(prefix + line + b"\n" for line in lines))
            sys.stderr.buffer.flush()


def child_environment(state: Path) -> dict[str, str]:
    """Return our environment, changed so that children import from this checkout and find the state folder."""
    checkout = str(Path(__file__).parents[2])
    path = [checkout, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ours = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours, "USAGE_FEEDS_STATE": str(state)}


def format_ending(process: Process) -> str:
    """Return how a process ended, as the end of a sentence."""
    code = process.returncode
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise StopRequested on Ctrl-C, SIGTERM and SIGHUP while the block runs."""

    def raise_stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise StopRequested(number)

    before = {number: signal.signal(number, raise_stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
