"""`import`: take over the history of organisations."""

import gc
import sqlite3
import sys
from typing import IO

import click
from rich.console import Console

from worker.commands import CannotRun, CommandFailed
from worker.commands.lines import file_size, progress_bar, read_chunks, report_console
from worker.commands.output import count, format_refusal, json_option, print_json
from worker.commands.servers import open_ledger
from worker.events import EventRefused
from worker.intake.histories import Import, import_histories
from worker.intake.sorted_lines import add_lines, open_sorter, read_sorted
from worker.ledger.dated_events import parse_dated_event
from worker.ledger.history import RefusedLine
from worker.process import feeds_redis, publish
from worker.settings import worker_settings


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--check", is_flag=True, help="Post everything, and commit nothing.")
@json_option
def import_(*, file: IO[bytes], check: bool, as_json: bool) -> None:
    """Import the history of organisations that have no movements yet.

    FILE (- is standard input) holds one event a line, as `send` takes it. Each also has `at`: when it
    is posted. For an organisation, `at` never goes back, and is never later than now. The lines of
    organisations may be mixed.

    An organisation is imported whole or not at all: standard error says what is wrong, and the exit
    code is 1. An organisation that has movements is refused, so a repeat imports only what is missing.
    """
    gc.freeze()  # so that start-up objects are not scanned again and again: a tenth of the time
    console = report_console()
    if not check:
        feeds_redis()  # it is known early, so that the first publish need not wait until readers know the epoch
    try:
        job = import_file(file, console, check=check)
    except sqlite3.Error as error:
        raise CannotRun(f"The lines cannot be sorted on disk: {error}: make room, or set TMPDIR.") from error
    done = {"organisations": job.organisations, "events": job.events, "movements": job.movements}
    if as_json:
        print_json(done | {"refused": job.refused, "committed": not check})
    else:
        click.echo(format_summary(job))
    if job.refused:
        sys.exit(1)


def import_file(file: IO[bytes], console: Console, *, check: bool) -> Import:
    """Sort the file's lines by organisation, then import them. Raises CommandFailed if a line has no organisation."""
    with open_ledger() as (connection, ledger), open_sorter() as sorter:
        unowned = total = 0
        with progress_bar(console, "reading", file_size(file)) as advance:
            for chunk in read_chunks(file, advance):
                total += len(chunk)
                for number, raw in add_lines(sorter, chunk):
                    unowned += 1
                    console.print(f"line {number}: {explain_unowned(raw)}")
        if unowned:
            names = "1 line names" if unowned == 1 else f"{unowned:,} lines name"
            raise CommandFailed(f"{names} no organisation, and may be part of any history: nothing was imported.")
        with progress_bar(console, "posting", total) as advance:

            def report(org_id: str, line: RefusedLine) -> None:
                place = f"line {line.number}: " if line.number else ""
                console.print(f"{place}{org_id}: {format_refusal(line.reason)}")

            job = Import(connection, ledger, publish, report, advance, check)
            import_histories(job, read_sorted(sorter))
    return job


def explain_unowned(raw: bytes) -> str:
    """Return what is wrong with a line that names no organisation."""
    try:
        parse_dated_event(raw, worker_settings().usage_kinds)
    except EventRefused as reason:
        return format_refusal(reason)
    return "it names no organisation"


def format_summary(job: Import) -> str:
    """Return what was done, in one sentence."""
    done = "can be imported" if job.check else "imported"
    sums = f"{count(job.events, 'event')}, {count(job.movements, 'movement')}"
    return f"{count(job.organisations, 'organisation')} {done}: {sums}. {job.refused:,} refused."
