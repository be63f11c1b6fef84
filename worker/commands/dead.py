"""`dead`: events that could not be posted."""

import sys
from datetime import datetime
from typing import Any

import click
from psycopg import Connection

from worker.commands import CommandFailed
from worker.commands.arguments import INSTANT
from worker.commands.output import count, json_option, print_facts, print_json, print_table
from worker.commands.servers import open_ledger
from worker.ledger import dead_letters
from worker.ledger.dead_letters import DeadLetter

ids_argument = click.argument("dead_letter_ids", metavar="[ID]...", type=int, nargs=-1)


@click.group()
def dead() -> None:
    """See, replay and discard events that could not be posted."""


@dead.command("list")
@click.option("--code", help="Those with this code alone, like conflict.")
@click.option("--org", help="Those of this organisation alone.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@json_option
def list_(*, code: str | None, org: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first."""
    with open_ledger() as (connection, _):
        found, total = dead_letters.list_dead_letters(connection, code, org, limit)
    if as_json:
        print_json({"total": total, "dead_letters": [describe(letter) for letter in found]})
        return
    if found:
        print_table(
            ["id", "buried_at", "code", "org", "message"],
            [[str(row.dead_letter_id), row.buried_at, row.code, row.org_id, row.message] for row in found],
        )
    click.echo(f"{len(found):,} of {count(total, 'dead letter')}" if total else "No dead letters.")


@dead.command()
@click.argument("dead_letter_id", metavar="ID", type=int)
@json_option
def show(*, dead_letter_id: int, as_json: bool) -> None:
    """Show one dead letter, with the event as it came."""
    with open_ledger() as (connection, _):
        [letter] = find(connection, (dead_letter_id,))
    facts = describe(letter)
    if as_json:
        print_json(facts)
        return
    fields = facts.pop("fields")
    print_facts(facts | {f"field {name}": reason for name, reason in fields.items()})


@dead.command()
@ids_argument
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@json_option
def replay(*, dead_letter_ids: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Post dead letters again, by ID or all, oldest first; exit 1 if any is refused again.

    Doing it twice is harmless: every ref is posted once.
    """
    # Imported here: only a replay posts.
    from worker.process import show as publish  # noqa: PLC0415

    if bool(dead_letter_ids) == everything:
        raise click.UsageError("Give either IDs or --all.")
    with open_ledger() as (connection, ledger):
        if dead_letter_ids:
            find(connection, dead_letter_ids)
        ids = dead_letter_ids or dead_letters.list_dead_letter_ids(connection)
        outcome = dead_letters.replay(connection, ledger, ids, publish)
    refused = [
        {"dead_letter_id": id_, "code": why.code, "message": why.message} for id_, why in outcome.refused.items()
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
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--before", type=INSTANT, metavar="TIME", help="Those buried before this, like 2026-06-01T00:00:00Z.")
@json_option
def discard(*, dead_letter_ids: tuple[int, ...], everything: bool, before: datetime | None, as_json: bool) -> None:
    """Forget dead letters for ever, by ID, all, or those buried before a time."""
    if [bool(dead_letter_ids), everything, before is not None].count(True) != 1:
        raise click.UsageError("Give either IDs, --all or --before.")
    with open_ledger() as (connection, _):
        if dead_letter_ids:
            find(connection, dead_letter_ids)
            discarded = dead_letters.discard_dead_letters(connection, dead_letter_ids)
        else:
            discarded = dead_letters.discard_buried_before(connection, before)
    if as_json:
        print_json({"discarded": sorted(discarded)})
    else:
        click.echo(f"{count(len(discarded), 'dead letter')} discarded.")


def find(connection: Connection[Any], dead_letter_ids: tuple[int, ...]) -> list[DeadLetter]:
    """Return these dead letters, or end the command if one is not there."""
    found = dead_letters.find_dead_letters(connection, dead_letter_ids)
    missing = sorted(set(dead_letter_ids) - {letter.dead_letter_id for letter in found})
    if missing:
        raise CommandFailed(f"No dead letter {', '.join(map(str, missing))}: see `usage-feeds dead list`.")
    return found


def describe(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter's facts, its bytes as text."""
    return letter._asdict() | {"raw": letter.raw.decode("utf-8", "backslashreplace")}
