"""The command line `usage-feeds`, also started by `python -m worker`."""

from worker.commands import cli


def main() -> None:
    """Run one command. Exit codes: 0 done, 1 a check failed, 2 wrong usage or a server that cannot be reached."""
    cli(prog_name="usage-feeds")


if __name__ == "__main__":
    main()
