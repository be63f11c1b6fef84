"""`up`: run everything on this machine."""

import shlex
import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from feeds.keys import create_key
from feeds.state import state_dir
from worker.commands.servers import open_database
from worker.local import machine
from worker.local.demo import STUDIO
from worker.local.state import locked_state_folder, remove_stale_addresses, stored_addresses
from worker.local.supervisor import StopRequested, Supervisor, stop_signals

DEMO_KEY_LIFETIME = timedelta(days=7)


@click.command()
@click.option("--demo", is_flag=True, help="Add sample traffic, and print a curl line that reads it.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The endpoint's port on loopback."
)
def up(*, demo: bool, port: int) -> None:
    """Run everything on this machine, until Ctrl-C. SIGTERM lets requests end as `serve` does.

    Postgres and Valkey come with the program, unless DATABASE_URL or REDIS_URL name others. They
    store their data in the state folder. Other commands find a running `up` through that folder.
    """
    state = state_dir()
    with suppress(StopRequested), ExitStack() as cleanup:
        cleanup.enter_context(stop_signals())
        cleanup.enter_context(locked_state_folder(state))
        run(cleanup, port, demo=demo)


def run(cleanup: ExitStack, port: int, *, demo: bool) -> None:
    """Start everything, print the addresses, and restart what dies until StopRequested or an error is raised.

    Args:
        cleanup: Receives what must happen when `up` ends.
        port: The endpoint's.
        demo: Whether to add the demo's traffic.
    """
    state = state_dir()
    remove_stale_addresses()
    machine.require_port(port)
    supervisor = Supervisor(state)
    cleanup.push(supervisor.stop_on_exit)
    machine.start_servers(supervisor, state)
    machine.prepare_ledger()
    machine.start_processes(supervisor, state, port)
    if demo:
        machine.start_demo(supervisor)
    cleanup.enter_context(stored_addresses(machine.endpoint_url(port)))
    click.echo(format_ready_message(port, demo_key() if demo else None))
    sys.stdout.flush()
    supervisor.watch()


def demo_key() -> str:
    """Create a key for the organisation that the printed curl line reads, and return its secret."""
    with open_database() as connection:
        _, secret = create_key(connection, org_id=STUDIO.org_id, expires_at=datetime.now(UTC) + DEMO_KEY_LIFETIME)
    return secret


def command_line() -> str:
    """Return how the user runs another command of this program with this state folder."""
    checkout = Path(__file__).parents[2]
    program = "python3 run.py" if (checkout / "run.py").exists() else "usage-feeds"
    is_default = state_dir() == checkout / ".usage-feeds"
    return program if is_default else f"{program} --state {shlex.quote(str(state_dir()))}"


def format_ready_message(port: int, key: str | None) -> str:
    """Return what `up` prints once everything is ready: addresses, and what to run next."""
    base = machine.endpoint_url(port)
    lines = [
        "",
        "usage-feeds is up. Ctrl-C stops it.",
        f"  endpoint   {base}/credits/usage",
        f"  state      {state_dir()}",
        "  commands   in another terminal; COMMAND is feed ORG, verify, dead list, health …:",
        f"             {command_line()} COMMAND",
    ]
    if key:
        lines += [
            f"  sample     credits of {STUDIO.org_id} are granted, drawn, overflow, expire and are revoked:",
            "",
            f"curl -H 'Authorization: Bearer {key}' '{base}/credits/usage?limit=5'",
        ]
    return "\n".join([*lines, ""])
