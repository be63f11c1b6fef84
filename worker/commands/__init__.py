"""Which commands are there, and what do all of them share?"""

import os
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "up": ("worker.commands.up", "Run everything on this machine."),
    "migrate": ("worker.commands.migrate", "Bring the database's schema and facts up to date."),
    "serve": ("worker.commands.serve", "Run the endpoint."),
    "keys": ("worker.commands.keys", "Create, list and revoke API keys."),
    "members": ("worker.commands.members", "Say who may act for an organisation."),
    "usage": ("worker.commands.events", "Add a usage: credits that a customer used."),
    "grant": ("worker.commands.events", "Add a grant: credits given to a customer."),
    "revoke": ("worker.commands.events", "Add a revoke: a grant is clawed back."),
    "send": ("worker.commands.events", "Add events from newline-delimited JSON."),
    "feed": ("worker.commands.feed", "Show a page of an organisation's movements."),
    "balance": ("worker.commands.feed", "Show what an organisation has left."),
    "grants": ("worker.commands.feed", "Show an organisation's grants."),
    "verify": ("worker.commands.verify", "Recompute every invariant, and compare the cached feeds."),
    "rebuild": ("worker.commands.rebuild", "Make every cached feed anew."),
    "drain": ("worker.commands.drain", "Post what waits in the streams, without Celery."),
    "health": ("worker.commands.health", "Show how old the last sign of work is."),
    "dead": ("worker.commands.dead", "See, replay and discard events that could not be posted."),
}


class CommandFailed(click.ClickException):
    """What was asked for is not so: one line on standard error, exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:  # noqa: ARG002 -- click's own signature
        """Print the line."""
        click.echo(f"usage-feeds: {self.message}", err=True)


class CannotRun(CommandFailed):
    """A command that cannot go on: one line on standard error, exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Imports a command only when it is called, and gives every one `--state` and the same way to fail."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's own signature
        """Return the names in the order of the contract."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return one command, with the options that all have."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        add_state_option(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write what each command is for, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, purpose) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what an operator can mend becomes one line that says how."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Imported here: explaining needs every driver, running a command does not.
            from worker.commands.trouble import explain  # noqa: PLC0415

            message = explain(error)
            if message is None:
                raise
            raise CannotRun(message) from error


def add_state_option(command: click.Command) -> None:
    """Let a command, and those under it, take `--state`."""
    if not any(parameter.name == "state" for parameter in command.params):
        command.params.append(state_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_state_option(below)


def state_option() -> click.Option:
    """Return `--state`: eager, so that it is known before any setting is read."""
    return click.Option(
        ["--state"],
        type=click.Path(file_okay=False),
        metavar="DIR",
        expose_value=False,
        is_eager=True,
        callback=choose_state,
        help="The state folder of a running `up`.  [default: $USAGE_FEEDS_STATE or .usage-feeds]",
    )


def choose_state(_context: click.Context, _parameter: click.Parameter, folder: str | None) -> None:
    """Make the folder the process's own, and its children's."""
    if folder:
        os.environ["USAGE_FEEDS_STATE"] = os.path.abspath(folder)  # noqa: PTH100 -- no symlink is followed


@click.group(cls=Commands, params=[state_option()], context_settings={"max_content_width": 100})
def cli() -> None:
    """Post credit events to a ledger, and serve every customer's activity feed.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or a server that cannot be reached.
    """
