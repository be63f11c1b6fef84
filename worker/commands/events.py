"""`usage`, `grant`, `revoke` and `send`: add events to the streams."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any

import click
from typeid import TypeID

from worker.broker.start import refuse_clusters
from worker.commands.lines import file_size, progress_bar, read_chunks, report_console
from worker.commands.output import format_refusal, json_option, print_json
from worker.commands.servers import require_redis
from worker.events import EventRefused, parse_event
from worker.producer import Producer
from worker.settings import worker_settings


def read_labels(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str] | None:
    """Return the labels that options hold, each as NAME=VALUE; None without any."""
    pairs = [label.partition("=") for label in given]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise click.BadParameter(f"write {wrong[0]}=VALUE")
    names = [name for name, _, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{repeated[0]} is given {names.count(repeated[0])} times")
    return {name: value for name, _, value in pairs} or None


label_option = click.option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    callback=read_labels,
    help="Kept with its movements; may be repeated.",
)


@click.command()
@click.argument("org_id", metavar="ORG")
@click.argument("usage_kind", metavar="KIND")
@click.argument("credits", type=int)
@click.option("--ref", "usage_ref", help="The usage's ref.  [default: a new one]")
@click.option(
    "--at", "occurred_at", metavar="TIME", help="When the credits were used, like 2026-06-01T10:00:00Z.  [default: now]"
)
@label_option
@json_option
def usage(*, as_json: bool, **given: Any) -> None:
    """Add a usage of CREDITS credits of the usage kind KIND, and print its ref.

    The same usage with the same ref changes nothing, so a repeat is harmless.
    """
    given["usage_ref"] = given["usage_ref"] or new_ref("usage")
    add_event({"type": "usage"} | given, "usage_ref", as_json=as_json)


@click.command()
@click.argument("org_id", metavar="ORG")
@click.argument("credits", type=int)
@click.option("--ref", "grant_ref", help="The grant's ref.  [default: a new one]")
@click.option("--source", type=click.Choice(["plan", "promotion"]), default="plan", show_default=True)
@click.option("--priority", type=int, default=50, show_default=True, help="From 0 to 100; lower is drawn first.")
@click.option("--from", "effective_at", metavar="TIME", help="When it starts.  [default: no lower bound]")
@click.option("--until", "expires_at", metavar="TIME", help="When it ends.  [default: never]")
@label_option
@json_option
def grant(*, as_json: bool, **given: Any) -> None:
    """Add a grant of CREDITS credits, and print its ref.

    The same grant with the same ref changes nothing, so a repeat is harmless.
    """
    given["grant_ref"] = given["grant_ref"] or new_ref("grant")
    add_event({"type": "grant"} | given, "grant_ref", as_json=as_json)


@click.command()
@click.argument("org_id", metavar="ORG")
@click.argument("grant_ref", metavar="REF")
@click.option("--reason", help="Stored with the grant; at most 200 characters.")
@json_option
def revoke(*, as_json: bool, **given: Any) -> None:
    """Add a revoke of the grant REF: it takes back what remains of the grant."""
    add_event({"type": "revoke"} | given, "grant_ref", as_json=as_json)


def new_ref(prefix: str) -> str:
    """Return a new TypeID."""
    return str(TypeID(prefix=prefix))


def add_event(given: dict[str, Any], ref_field: str, *, as_json: bool) -> None:
    """Add one event to its stream, and print its ref, or the whole event as JSON.

    Args:
        given: The event's fields; those that are None are left out.
        ref_field: The name of the field that holds the ref.
        as_json: Whether to print JSON.
    """
    event = {name: value for name, value in given.items() if value is not None}
    with open_producer() as producer:
        producer.send([event])
    if as_json:
        print_json(event)
    else:
        click.echo(event[ref_field])


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--check", is_flag=True, help="Only check the lines; send nothing.")
@json_option
def send(*, file: IO[bytes], check: bool, as_json: bool) -> None:
    """Add the events of FILE (- is standard input), one JSON object a line, in UTF-8.

    Bad lines are reported on standard error with their numbers, and the others are sent. The exit code is then 1.
    Sending the same file again is harmless.
    """
    bad = good = 0
    console = report_console()
    with (
        nullcontext() if check else open_producer() as producer,
        progress_bar(console, "events", file_size(file)) as advance,
    ):
        for chunk in read_chunks(file, advance):
            events = []
            for number, line in chunk:
                try:
                    events.append(parse_event(line, worker_settings().usage_kinds))
                except EventRefused as refused:
                    bad += 1
                    console.print(f"line {number}: {format_refusal(refused)}")
            if producer:
                producer.send(events)
            good += len(events)
    if as_json:
        print_json({"good": good, "bad": bad, "sent": 0 if check else good})
    else:
        click.echo(f"{good:,} {'good' if check else 'sent'}, {bad:,} bad.")
    if bad:
        sys.exit(1)


@contextmanager
def open_producer() -> Iterator[Producer]:
    """Give a producer for the settings of this process."""
    settings = worker_settings()
    require_redis(settings.redis_url)
    refuse_clusters()
    with Producer(
        settings.redis_url,
        broker_url=settings.celery_broker_url,
        event_shards=settings.event_shards,
        usage_kinds=settings.usage_kinds,
    ) as producer:
        yield producer
