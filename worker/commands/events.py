"""`usage`, `grant`, `revoke` and `send`: what a producer does, from a terminal."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import Progress
from typeid import TypeID

from worker.commands.output import format_refusal, json_option, print_json
from worker.commands.servers import require_redis
from worker.events import EVENT_BYTES, EventRefused, parse_event
from worker.producer import Producer
from worker.settings import worker_settings

CHUNK = 1000


@click.command()
@click.argument("org_id", metavar="ORG")
@click.argument("usage_kind", metavar="KIND")
@click.argument("credits", type=int)
@click.option("--ref", "usage_ref", help="The usage's ref.  [default: a new one]")
@click.option(
    "--at", "occurred_at", metavar="TIME", help="When it was used, like 2026-06-01T10:00:00Z.  [default: now]"
)
@json_option
def usage(*, as_json: bool, **given: Any) -> None:
    """Add a usage of CREDITS credits, of the usage kind KIND, and print its ref.

    The same ref again does nothing: a repeat is harmless.
    """
    given["usage_ref"] = given["usage_ref"] or new_ref("usage")
    add({"type": "usage"} | given, "usage_ref", as_json=as_json)


@click.command()
@click.argument("org_id", metavar="ORG")
@click.argument("credits", type=int)
@click.option("--ref", "grant_ref", help="The grant's ref.  [default: a new one]")
@click.option("--source", type=click.Choice(["plan", "promotion"]), default="plan", show_default=True)
@click.option("--priority", type=int, default=50, show_default=True, help="0 to 100; lower is drawn first.")
@click.option("--from", "effective_at", metavar="TIME", help="Its start.  [default: no lower bound]")
@click.option("--until", "expires_at", metavar="TIME", help="Its end.  [default: never]")
@json_option
def grant(*, as_json: bool, **given: Any) -> None:
    """Add a grant of CREDITS credits, and print its ref.

    The same ref again does nothing: a repeat is harmless.
    """
    given["grant_ref"] = given["grant_ref"] or new_ref("grant")
    add({"type": "grant"} | given, "grant_ref", as_json=as_json)


@click.command()
@click.argument("org_id", metavar="ORG")
@click.argument("grant_ref", metavar="REF")
@click.option("--reason", help="Kept with the grant; at most 200 characters.")
@json_option
def revoke(*, as_json: bool, **given: Any) -> None:
    """Add a revoke of the grant REF: what remains of it is clawed back."""
    add({"type": "revoke"} | given, "grant_ref", as_json=as_json)


def new_ref(prefix: str) -> str:
    """Return a fresh TypeID."""
    return str(TypeID(prefix=prefix))


def add(given: dict[str, Any], ref_field: str, *, as_json: bool) -> None:
    """Add one event, without the fields that were not given, to its stream, and print its ref."""
    event = {name: value for name, value in given.items() if value is not None}
    with open_producer() as producer:
        producer.send([event])
    if as_json:
        print_json(event)
    else:
        click.echo(event[ref_field])


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--check", is_flag=True, help="Only look for bad lines; send nothing.")
@json_option
def send(*, file: IO[bytes], check: bool, as_json: bool) -> None:
    """Add the events of FILE (- is standard input), one JSON object a line.

    Bad lines go to standard error with their numbers, the others are sent, and the exit code is 1.
    Sending the same file again is harmless.
    """
    bad = good = 0
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with nullcontext() if check else open_producer() as producer, progress_bar(file, console) as advance:
        for chunk in batched(read_lines(file), CHUNK):
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
            advance(sum(len(line) + 1 for _, line in chunk))
    if as_json:
        print_json({"good": good, "bad": bad, "sent": 0 if check else good})
    else:
        click.echo(f"{good:,} {'good' if check else 'sent'}, {bad:,} bad.")
    if bad:
        sys.exit(1)


@contextmanager
def open_producer() -> Iterator[Producer]:
    """Lend what adds events to the streams."""
    settings = worker_settings()
    require_redis(settings.redis_url)
    with Producer(
        settings.redis_url,
        broker_url=settings.celery_broker_url,
        event_shards=settings.event_shards,
        usage_kinds=settings.usage_kinds,
    ) as producer:
        yield producer


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Return the lines that are not blank, with their numbers. A line too long for an event is cut where that shows."""
    number = 0
    while line := file.readline(EVENT_BYTES + 2):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(EVENT_BYTES)
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def batched(lines: Iterator[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Return the lines in lists of `size`, the last one shorter."""
    while chunk := list(islice(lines, size)):
        yield chunk


@contextmanager
def progress_bar(file: IO[bytes], console: Console) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and lend what moves it by a number of bytes."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("events", total=size_of(file))
        yield lambda more: progress.advance(task, more)


def size_of(file: IO[bytes]) -> int | None:
    """Return the size of a file, or None for a pipe."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None
