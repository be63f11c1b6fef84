"""`dead`: events that could not be posted."""

import sys
from datetime import datetime
from typing import Any

import click
from psycopg import Connection

from worker.commands import CommandFailed
from worker.commands.arguments import INSTANT
from worker.commands.output import count, json_option, print_facts, print_json, print_table
from worker.commands.servers import open_ledger, open_streams
from worker.ledger import dead_letters
from worker.ledger.dead_letters import DeadLetter

ids_argument = click.argument("dead_letter_ids", metavar="[ID]...", type=int, nargs=-1)


@click.group()
def dead() -> None:
    """List, print, replay and discard events that could not be posted."""


@dead.command("list")
@click.option("--code", help="Only dead letters with this code, like conflict.")
@click.option("--org", help="Only dead letters of this organisation.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many are listed at most."
)
@json_option
def list_(*, code: str | None, org: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first."""
    with open_ledger() as (connection, _):
        letters, total = dead_letters.list_dead_letters(connection, code, org, limit)
    if as_json:
        print_json({"total": total, "dead_letters": [letter_facts(letter) for letter in letters]})
        return
    if letters:
        print_table(
            ["id", "buried_at", "code", "org", "message"],
            [
                [str(letter.dead_letter_id), letter.buried_at, letter.code, letter.org_id, letter.message]
                for letter in letters
            ],
        )
    click.echo(f"{len(letters):,} of {count(total, 'dead letter')}" if total else "No dead letters.")


@dead.command("show")
@click.argument("dead_letter_id", metavar="ID", type=int)
@json_option
def print_one(*, dead_letter_id: int, as_json: bool) -> None:
    """Print one dead letter, with the event as it was received."""
    with open_ledger() as (connection, _):
        [letter] = find_all(connection, (dead_letter_id,))
    facts = letter_facts(letter)
    if as_json:
        print_json(facts)
        return
    fields = facts.pop("fields")
    print_facts(facts | {f"field {name}": problem for name, problem in fields.items()})


@dead.command("replay")
@ids_argument
@click.option("--all", "everything", is_flag=True, help="Replay every dead letter.")
@json_option
def replay_(*, dead_letter_ids: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Post dead letters again, by ID or all, oldest first; exit 1 if any is refused again.

    It is safe to repeat: every ref is posted once.
    """
    # Imported here: the other commands of this group do not post.
    from worker.intake.replay import replay  # noqa: PLC0415
    from worker.process import publish  # noqa: PLC0415

    if bool(dead_letter_ids) == everything:
        raise click.UsageError("Give either IDs or --all.")
    with open_ledger() as (connection, ledger), open_streams() as streams:
        if dead_letter_ids:
            find_all(connection, dead_letter_ids)
        ids = dead_letter_ids or dead_letters.list_dead_letter_ids(connection)
        outcome = replay(connection, streams, ledger, ids, publish)
    refused = [
        {"dead_letter_id": dead_letter_id, "code": reason.code, "message": reason.message}
        for dead_letter_id, reason in outcome.refused.items()
    ]
    if as_json:
        print_json({"posted": outcome.posted, "refused": refused})
    else:
        for row in refused:
            click.echo(f"{row['dead_letter_id']}: {row['code']}: {row['message']}", err=True)
        click.echo(f"{count(len(outcome.posted), 'dead letter')} posted, {len(refused):,} refused again.")
    if refused:
        sys.exit(1)


@dead.command()
@ids_argument
@click.option("--all", "everything", is_flag=True, help="Discard every dead letter.")
@click.option(
    "--before", type=INSTANT, metavar="TIME", help="Discard those buried before this time, like 2026-06-01T00:00:00Z."
)
@json_option
def discard(*, dead_letter_ids: tuple[int, ...], everything: bool, before: datetime | None, as_json: bool) -> None:
    """Delete dead letters for ever: by ID, all, or those buried before a time."""
    if [bool(dead_letter_ids), everything, before is not None].count(True) != 1:
        raise click.UsageError("Give either IDs, --all or --before.")
    with open_ledger() as (connection, _):
        if dead_letter_ids:
            find_all(connection, dead_letter_ids)
            discarded = dead_letters.discard_dead_letters(connection, dead_letter_ids)
        else:
            discarded = dead_letters.discard_buried_before(connection, before)
    if as_json:
        print_json({"discarded": sorted(discarded)})
    else:
        click.echo(f"{count(len(discarded), 'dead letter')} discarded.")


def find_all(connection: Connection[Any], dead_letter_ids: tuple[int, ...]) -> list[DeadLetter]:
    """Return these dead letters. Ends the command if one of them does not exist."""
    letters = dead_letters.find_dead_letters(connection, dead_letter_ids)
    missing = sorted(set(dead_letter_ids) - {letter.dead_letter_id for letter in letters})
    if missing:
        raise CommandFailed(f"No dead letter {', '.join(map(str, missing))}: see `usage-feeds dead list`.")
    return letters


def letter_facts(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter's fields by name, with the event's bytes as text."""
    return letter._asdict() | {"raw": letter.raw.decode("utf-8", "backslashreplace")}
