"""`doctor`: is everything set up as it should be?"""

import sys
import textwrap
from collections import Counter

import click
from rich.text import Text

from feeds.settings import reader_settings
from worker.commands.output import console, count, json_option, print_json
from worker.commands.servers import NoServer, reason
from worker.doctor.finding import Finding, Level
from worker.doctor.rounds import Report, examine
from worker.settings import worker_settings

STYLES = {Level.OK: "green", Level.NOTE: "yellow", Level.MEND: "bold red"}
LEVEL_WIDTH = len("note  ")
MARGIN = 2


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Look at the whole set-up: servers, versions, settings, rights, clocks and workers.

    Each finding is one line. It begins with `ok`, with `note` (it works, but deserves attention) or with `mend` (it
    must be mended); the last two say what was found, why it matters, and what to do. Nothing is changed. Run it with
    the environment of a worker.

    Exit 1 if something must be mended, 2 if a server cannot be reached.
    """
    settings, reader = worker_settings(), reader_settings()
    if not (settings.database_url or reader.reader_database_url):
        raise NoServer("No address of Postgres is set: start `usage-feeds up`, or set DATABASE_URL.")
    if not settings.feeds_redis_url:
        raise NoServer("No address of Redis is set: start `usage-feeds up`, or set REDIS_URL.")
    report = examine(settings, reader.reader_database_url, reason)
    levels = Counter(finding.level for section in report.sections for finding in section.findings)
    (print_document if as_json else print_report)(report, levels)
    if report.is_away:
        sys.exit(2)
    if levels[Level.MEND]:
        sys.exit(1)


def print_document(report: Report, levels: Counter[Level]) -> None:
    """Print the findings as JSON."""
    print_json(
        {
            "sound": not levels[Level.MEND],
            "reachable": not report.is_away,
            "findings": [
                {"about": section.about, **finding._asdict()}
                for section in report.sections
                for finding in section.findings
            ],
        }
    )


def print_report(report: Report, levels: Counter[Level]) -> None:
    """Print the findings by place, and how many there are of each level."""
    screen = console()
    for section in report.sections:
        if section.findings:
            screen.print(Text(section.about, style="bold"), soft_wrap=True)
        for finding in section.findings:
            screen.print(format_finding(finding, screen.width), soft_wrap=True)
    notes = count(levels[Level.NOTE], "note")
    to_mend = f"{count(levels[Level.MEND], 'thing')} to mend" if levels[Level.MEND] else "Nothing to mend"
    click.echo(f"{to_mend}, {notes}.")


def format_finding(finding: Finding, width: int) -> Text:
    """Return a finding as text, folded beside its level. Without a terminal it is one line."""
    text = Text(
        textwrap.fill(
            " ".join(filter(None, (finding.what, finding.why, finding.to_do))),
            width,
            initial_indent=f"{' ' * MARGIN}{finding.level:<{LEVEL_WIDTH}}",
            subsequent_indent=" " * (MARGIN + LEVEL_WIDTH),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
    text.stylize(STYLES[finding.level], MARGIN, MARGIN + len(finding.level))
    return text
