"""`up`."""

import shlex
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from feeds.keys import create_key
from feeds.state import state_dir
from worker.commands.servers import open_database
from worker.local import machine
from worker.local.demo import SHOWN
from worker.local.state import forget_addresses, hold_state, published_addresses
from worker.local.supervisor import Stopped, Supervisor, stop_signals

DEMO_KEY_LASTS = timedelta(days=7)


@click.command()
@click.option("--demo", is_flag=True, help="Add sample traffic, and print a curl line that shows it.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The endpoint's port on loopback."
)
def up(*, demo: bool, port: int) -> None:
    """Run everything on this machine, until Ctrl-C.

    Postgres and Valkey come with the program, unless DATABASE_URL or REDIS_URL name others. What
    they hold is kept in the state folder; other commands find them through it.
    """
    state = state_dir()
    with ExitStack() as life:
        life.enter_context(stop_signals())
        try:
            life.enter_context(hold_state(state))
            run(life, port, demo=demo)
        except Stopped:
            pass


def run(life: ExitStack, port: int, *, demo: bool) -> None:
    """Start everything, say where it is, and keep it alive until Stopped or an error is raised."""
    state = state_dir()
    forget_addresses()
    machine.require_port(port)
    supervisor = Supervisor(state)
    life.callback(supervisor.stop)
    machine.start_servers(supervisor, state)
    machine.prepare_ledger()
    machine.start_processes(supervisor, state, port)
    if demo:
        machine.start_demo(supervisor)
    life.enter_context(published_addresses(machine.endpoint_url(port)))
    click.echo(ready_block(port, demo_key() if demo else None))
    sys.stdout.flush()
    supervisor.watch()


def demo_key() -> str:
    """Make a key for the organisation that the demo shows, and return its secret."""
    with open_database() as connection:
        _, secret = create_key(connection, org_id=SHOWN.org_id, expires_at=datetime.now(UTC) + DEMO_KEY_LASTS)
    return secret


def command_line() -> str:
    """Return how the user calls another command of this very program, with this state folder."""
    checkout = Path(__file__).parents[2]
    program = "python3 run.py" if (checkout / "run.py").exists() else "usage-feeds"
    is_default = state_dir() == checkout / ".usage-feeds"
    return program if is_default else f"{program} --state {shlex.quote(str(state_dir()))}"


def ready_block(port: int, key: str | None) -> str:
    """Return what a newcomer needs to know next."""
    base = machine.endpoint_url(port)
    lines = [
        "",
        "usage-feeds is up. Ctrl-C stops it.",
        f"  endpoint   {base}/credits/usage",
        f"  state      {state_dir()}",
        "  look       in another terminal, COMMAND being feed ORG, verify, dead list, health …:",
        f"             {command_line()} COMMAND",
    ]
    if key:
        lines += [
            f"  sample     {SHOWN.org_id} draws, overflows, lapses and is clawed back:",
            "",
            f"curl -H 'Authorization: Bearer {key}' '{base}/credits/usage?limit=5'",
        ]
    return "\n".join([*lines, ""])
