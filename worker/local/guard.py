"""Who ends the children of a process that was killed? This file, run as a process of its own.

It reads lines of a process group and a signal (0: forget the group) from standard input. At its
end the writer is gone, however it went: the groups get their signals, and after a grace SIGKILL.
Standard library alone: it runs isolated from everything else.
"""

import os
import signal
import sys
import time

GRACE_S = 5.0


def send(group: int, number: int) -> bool:
    """Signal a process group; False when it is gone."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main() -> None:
    """Wait for the end of standard input, then end what it named."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        group, number = map(int, line.split())
        groups[group] = number
    left = [group for group, number in groups.items() if number and send(group, number)]
    deadline = time.monotonic() + GRACE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [group for group in left if send(group, 0)]
    for group in left:
        send(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
