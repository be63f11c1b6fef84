"""Run Celery with a clock that another program moves: `python moved_clock.py FILE ARGUMENTS-OF-CELERY…`.

The file holds by how many seconds the clock is ahead of this machine's. Only this process's wall clock moves.
"""

import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine

LOOK_EVERY_S = 0.2


def read_offset(file: Path) -> float:
    """Return by how many seconds the clock is to be ahead; 0 if the file says nothing."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


def follow(file: Path, traveller: time_machine.Traveller) -> None:
    """Move the clock whenever the file says something else."""
    known = 0.0
    while True:
        if (offset := read_offset(file)) != known:
            traveller.shift(timedelta(seconds=offset - known))
            known = offset
        threading.Event().wait(LOOK_EVERY_S)


def main() -> int:
    """Start the clock, then Celery."""
    from celery.__main__ import main as celery  # noqa: PLC0415 -- only after the path is right

    file = Path(sys.argv.pop(1))
    with time_machine.travel(datetime.now(UTC), tick=True) as traveller:
        threading.Thread(target=follow, args=(file, traveller), daemon=True).start()
        return int(celery() or 0)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are not meant to be found
    sys.path.insert(0, ".")
    sys.exit(main())
