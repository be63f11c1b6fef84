"""How does a command read a file of JSON lines, and show how far it is?"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO

from rich.console import Console
from rich.progress import Progress

from worker.commands import CannotRun
from worker.events import BYTE_ORDER_MARK, EVENT_BYTES, describe_first_bytes

CHUNK_LINES = 1000


def report_console() -> Console:
    """Return the console of standard error, for reports about lines."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def read_chunks(file: IO[bytes], advance: Callable[[int], None]) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the lines that are not blank, with their numbers, in lists; after each, tell how many bytes it has."""
    lines = read_lines(file)
    while chunk := list(islice(lines, CHUNK_LINES)):
        yield chunk
        advance(sum(len(line) + 1 for _, line in chunk))


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers.

    A line that is too long for an event is cut, but remains too long, so that it is refused. A byte order mark before
    the first line is dropped. Raises CannotRun if the file begins as no file in UTF-8 does.
    """
    number = 0
    while line := file.readline(EVENT_BYTES + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            if problem := describe_first_bytes(line):
                raise CannotRun(f"The file cannot be read: {problem}.")
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(EVENT_BYTES)
        if line.strip():
            yield number, line.rstrip(b"\r\n")


@contextmanager
def progress_bar(console: Console, noun: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draw a progress bar on a terminal, and give the function that advances it.

    Args:
        console: Where to draw it.
        noun: What it counts.
        total: How many there are; None if that is not known.
    """
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(noun, total=total)
        yield lambda size: progress.advance(task, size)


def file_size(file: IO[bytes]) -> int | None:
    """Return the size of a file, or None for a pipe or what is no file of the system."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
