"""How does a test run a command in its own process?"""

import json

from click.testing import CliRunner

from worker.commands import cli


def run(*arguments, code=0, stdin=None):
    """Run a command, and return what it printed."""
    result = CliRunner().invoke(cli, arguments, input=stdin, prog_name="usage-feeds")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*arguments, code=0, stdin=None):
    """Run a command with --json, and return its document."""
    return json.loads(run(*arguments, "--json", code=code, stdin=stdin).stdout)
