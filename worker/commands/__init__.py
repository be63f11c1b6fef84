"""Which commands are there, and what do all of them share?"""

import os
from importlib import import_module
from keyword import iskeyword
from typing import Any

import click

COMMANDS = {
    "up": ("worker.commands.up", "Run everything on this machine."),
    "migrate": ("worker.commands.migrate", "Bring the database's schema and the ledger's facts up to date."),
    "serve": ("worker.commands.serve", "Run the HTTP endpoint."),
    "keys": ("worker.commands.keys", "Create, list and revoke API keys."),
    "members": ("worker.commands.members", "Set and remove the members of organisations."),
    "usage": ("worker.commands.events", "Add a usage: credits that an organisation used."),
    "grant": ("worker.commands.events", "Add a grant: credits given to an organisation."),
    "revoke": ("worker.commands.events", "Add a revoke: it takes back what remains of a grant."),
    "send": ("worker.commands.events", "Add events from newline-delimited JSON."),
    "import": ("worker.commands.history", "Import the history of organisations that have no movements yet."),
    "feed": ("worker.commands.feed", "Print a page of an organisation's movements."),
    "balance": ("worker.commands.feed", "Print the credits that an organisation has left."),
    "grants": ("worker.commands.feed", "Print an organisation's grants."),
    "verify": ("worker.commands.verify", "Recompute every invariant, and compare the cached feeds."),
    "rebuild": ("worker.commands.rebuild", "Discard every cached feed and start a new epoch."),
    "drain": ("worker.commands.drain", "Post what waits in the streams, without Celery."),
    "health": ("worker.commands.health", "Report how old the last batch and the last sweep are."),
    "doctor": ("worker.commands.doctor", "Look at the whole set-up, and say what to mend."),
    "dead": ("worker.commands.dead", "List, print, replay and discard events that could not be posted."),
}


class CommandFailed(click.ClickException):
    """A command failed: one line on standard error, exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:  # noqa: ARG002 -- click's own signature
        """Print the message. The name is click's."""
        click.echo(f"usage-feeds: {self.message}", err=True)


class CannotRun(CommandFailed):
    """A command cannot run: one line on standard error, exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Imports a command only when it runs. All commands get `--state`, and report errors in the same way."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's own signature
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, with the options that all commands have."""
        if cmd_name not in COMMANDS:
            return None
        try:
            command: click.Command = getattr(import_module(COMMANDS[cmd_name][0]), function_of(cmd_name))
        except ModuleNotFoundError as error:
            raise CannotRun(f"{error.name} is not installed: pip install 'usage-feeds[server,local]'.") from error
        add_state_option(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write what each command is for, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, purpose) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. An error that an operator can fix becomes one line that says how."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Imported here: `explain` needs every driver, a command that succeeds does not.
            from worker.commands.trouble import explain  # noqa: PLC0415

            message = explain(error)
            if message is None:
                raise
            raise CannotRun(message) from error


def function_of(command: str) -> str:
    """Return the name of a command's function: a keyword of Python gets an underscore."""
    return f"{command}_" if iskeyword(command) else command


def add_state_option(command: click.Command) -> None:
    """Give a command, and its subcommands, the option `--state`."""
    if not any(parameter.name == "state" for parameter in command.params):
        command.params.append(state_option())
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            add_state_option(subcommand)


def state_option() -> click.Option:
    """Return `--state`. It is eager, so it takes effect before any setting is read."""
    return click.Option(
        ["--state"],
        type=click.Path(file_okay=False),
        metavar="DIR",
        expose_value=False,
        is_eager=True,
        callback=set_state_folder,
        help="The state folder of a running `up`.  [default: $USAGE_FEEDS_STATE or .usage-feeds]",
    )


def set_state_folder(_context: click.Context, _parameter: click.Parameter, folder: str | None) -> None:
    """Use the folder in this process and in its children."""
    if folder:
        os.environ["USAGE_FEEDS_STATE"] = os.path.abspath(folder)  # noqa: PTH100 -- Path.resolve would follow symlinks


@click.group(cls=Commands, params=[state_option()], context_settings={"max_content_width": 100})
def cli() -> None:
    """Post credit events to a ledger, and serve every organisation's activity feed.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or a server that cannot be reached.
    """
