"""How fast is it? `python3 run.py bench [write | read | latency | growth | all]`.

Ours and the peers are measured in turn, in the same run, on durable servers. Every ledger and every feed is verified; if
one is wrong, no figure is printed. `all` is everything except `growth`, which takes an hour.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import goals, growth, latency, reading, startup, writing
from tests.bench.environment import Missing, peers_program, wrk
from tests.bench.figures import summarise
from tests.bench.goals import Goal
from tests.bench.servers import Servers, running_servers

PARTS = ("write", "read", "latency", "growth", "all")
console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> int:
    """Measure, print the figures, and write them to a JSON file if one is given."""
    options = parse(sys.argv[1:])
    share = 0.1 if options.short else 1.0
    parts = ("write", "read", "latency") if options.part == "all" else (options.part,)
    found: dict[str, Any] = {"machine": describe_machine(), "began": datetime.now(UTC).isoformat(timespec="seconds")}
    results: list[Goal] = []
    try:
        wrk()
        if not options.short:
            peers_program("python")
        with running_servers(with_rabbitmq="write" in parts and not options.short) as servers:
            for part in parts:
                report(f"--- {part}")
                found[part], goals_of_part = MEASURES[part](servers, options, share)
                results += goals_of_part
    except Missing as missing:
        sys.exit(f"bench: {missing}")
    found["goals"] = goals.as_json(results)
    print_goals(results)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py bench", description="Measure usage-feeds and its peers in the same run."
    )
    parser.add_argument("part", nargs="?", choices=PARTS, default="all")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender is measured, in turn")
    parser.add_argument("--short", action="store_true", help="a tenth of the size, without peers, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument(
        "--movements", type=int, default=10_000_000, help="how many movements the large ledger of `growth` gets"
    )
    parser.add_argument(
        "--requests", type=int, default=10_000_000, help="how many requests the endpoint of `growth` answers"
    )
    return parser.parse_args(arguments)


def measure_writing(servers: Servers, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    runs, sizes = writing.run_rounds(servers, options.rounds, share, report)
    print_runs("events a second; the backlog is filled before the clock starts", runs, ("own_cpu_us", "server_cpu_us"))
    measured = {"runs": as_lists(runs), "sizes": {name: size._asdict() for name, size in sizes.items()}}
    return measured, list(goals.judge_writing(runs, sizes))


def measure_reading(servers: Servers, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    runs, depths = reading.run_rounds(servers, options.rounds, share, report)
    print_runs("requests a second, by wrk", runs, ("own_cpu_us", "server_cpu_us", "p50_ms", "p99_ms"))
    measured = {"runs": as_lists(runs), "depths": [depth._asdict() for depth in depths]}
    return measured, list(goals.judge_reading(runs, depths))


def measure_latency(servers: Servers, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    measured = latency.measure_latency(servers, seconds=max(3.0, 40 * share))
    report(
        f"from adding an event to seeing it on a page, {measured.events} events at {measured.rate:.0f}/s: "
        f"p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms, worst {measured.worst_ms:.0f} ms"
    )
    startups = startup.measure_startup(options.rounds if share == 1 else 1)
    report(f"`up` until its first page is served: {summarise(startups):.2f} s")
    return {"visible": measured._asdict(), "startup_s": startups}, list(goals.judge_latency(measured, startups))


def measure_growth(servers: Servers, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    movements, requests = int(options.movements * share), int(options.requests * share)
    grown = growth.measure_growth(servers, movements, requests, options.rounds, report)
    measured = grown._asdict() | {"sizes": grown.sizes._asdict()}
    return measured, list(goals.judge_growth(grown))


MEASURES = {"write": measure_writing, "read": measure_reading, "latency": measure_latency, "growth": measure_growth}


def as_lists(runs: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, float]]]:
    """Return the runs as JSON can hold them."""
    return {name: [run._asdict() for run in of_name] for name, of_name in runs.items()}


def print_runs(title: str, runs: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> None:
    """Print the median, the least and the greatest of rate and columns, for each contender."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("rate", *columns):
        table.add_column(name.replace("_us", ", µs").replace("_ms", ", ms").replace("_", " "), justify="right")
    for name, of_name in runs.items():
        rates = summarise([run.rate for run in of_name])
        others = [summarise([getattr(run, field) for run in of_name]) for field in columns]
        table.add_row(name, f"{rates:,.0f}", *(f"{other:,.1f}" for other in others))
    console.print(table)


def print_goals(results: Sequence[Goal]) -> None:
    """Print each goal beside its figure."""
    table = Table(title=f"{describe_machine()}, {datetime.now(UTC):%Y-%m-%d}", title_justify="left")
    for name in ("what", "goal", "figure", ""):
        table.add_column(name, justify="left" if name == "what" else "right")
    for goal in results:
        table.add_row(goal.what, goal.goal, goal.figure, {True: "met", False: "missed", None: ""}[goal.met])
    console.print(table)


def describe_machine() -> str:
    """Return cores, memory, system and Python version of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def report(progress: str) -> None:
    """Print a line of progress to standard error."""
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
