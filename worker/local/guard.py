"""Who ends the children of a process that was killed? This file, run as a process of its own.

It reads lines from standard input: the id of a process group and a signal number (0: forget the group). Standard input
ends when the writer ends, for any reason. Then the guard sends each group its signal, and SIGKILL after a grace period.
It imports the standard library only, because it runs with an isolated Python (`-I -S`).
"""

import os
import signal
import sys
import time

GRACE_S = 5.0
POLL_S = 0.05


def send(group: int, signal_number: int) -> bool:
    """Signal a process group; return False if it no longer exists."""
    try:
        os.killpg(group, signal_number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main() -> None:
    """Read groups until standard input ends, then end them."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal_of_group: dict[int, int] = {}
    for line in sys.stdin:
        group, signal_number = map(int, line.split())
        signal_of_group[group] = signal_number
    alive = [group for group, number in signal_of_group.items() if number and send(group, number)]
    deadline = time.monotonic() + GRACE_S
    while alive and time.monotonic() < deadline:
        time.sleep(POLL_S)
        alive = [group for group in alive if send(group, 0)]
    for group in alive:
        send(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
