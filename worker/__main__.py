"""The command line `usage-feeds`, also started by `python -m worker`."""

import io
import sys

from worker.commands import cli


def main() -> None:
    """Run one command. Exit codes: 0 done, 1 a check failed, 2 wrong usage or a server that cannot be reached.

    A character that the terminal's encoding lacks is printed as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="usage-feeds")


if __name__ == "__main__":
    main()
