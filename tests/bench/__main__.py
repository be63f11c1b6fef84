"""How fast is it? `python3 run.py bench [write | read | latency | growth | all]`.

Ours and the peers in turn, in the same run, on durable servers; every ledger and every feed is verified, and a run whose
ledger is not clean prints no figure. `all` is everything but `growth`, which takes an hour.
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
from tests.bench.ground import Ground, servers

PARTS = ("write", "read", "latency", "growth", "all")
console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> int:
    """Measure, print, and perhaps write JSON."""
    options = parse(sys.argv[1:])
    share = 0.1 if options.short else 1.0
    parts = ("write", "read", "latency") if options.part == "all" else (options.part,)
    found: dict[str, Any] = {"machine": describe_machine(), "began": datetime.now(UTC).isoformat(timespec="seconds")}
    reached: list[Goal] = []
    try:
        wrk()
        if not options.short:
            peers_program("python")
        with servers(with_rabbit="write" in parts and not options.short) as ground:
            for part in parts:
                say(f"--- {part}")
                measured, judged = MEASURES[part](ground, options, share)
                found[part] = measured
                reached += judged
    except Missing as missing:
        sys.exit(f"bench: {missing}")
    found["goals"] = goals.as_json(reached)
    show_goals(reached)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="run.py bench", description="Measure ours and the peers in the same run.")
    parser.add_argument("part", nargs="?", choices=PARTS, default="all")
    parser.add_argument("--rounds", type=int, default=5, help="of each contender, in turn")
    parser.add_argument("--short", action="store_true", help="a tenth of the size, without peers: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to a file")
    parser.add_argument("--movements", type=int, default=10_000_000, help="how far `growth` grows")
    parser.add_argument("--requests", type=int, default=10_000_000, help="how many its endpoint answers")
    return parser.parse_args(arguments)


def measure_writing(ground: Ground, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    runs, sizes = writing.race(ground, options.rounds, share, say)
    show_runs("events a second, the backlog filled before the clock starts", runs, ("own_cpu_us", "server_cpu_us"))
    measured = {"runs": as_lists(runs), "sizes": {name: size._asdict() for name, size in sizes.items()}}
    return measured, list(goals.judge_writing(runs, sizes))


def measure_reading(ground: Ground, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    runs, depths = reading.race(ground, options.rounds, share, say)
    show_runs("requests a second, by wrk", runs, ("own_cpu_us", "server_cpu_us", "p50_ms", "p99_ms"))
    measured = {"runs": as_lists(runs), "depths": [depth._asdict() for depth in depths]}
    return measured, list(goals.judge_reading(runs, depths))


def measure_waiting(ground: Ground, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    waited = latency.measure_latency(ground, seconds=max(3.0, 40 * share))
    say(f"added to visible, {waited.events} events at {waited.rate:.0f}/s: p50 {waited.p50_ms:.1f} ms, "
        f"p99 {waited.p99_ms:.1f} ms, worst {waited.worst_ms:.0f} ms")  # fmt: skip
    startups = startup.measure_startup(options.rounds if share == 1 else 1)
    say(f"`up` to its first page: {summarise(startups):.2f} s")
    return {"visible": waited._asdict(), "startup_s": startups}, list(goals.judge_latency(waited, startups))


def measure_growing(ground: Ground, options: argparse.Namespace, share: float) -> tuple[Any, list[Goal]]:
    movements, requests = int(options.movements * share), int(options.requests * share)
    grown = growth.measure_growth(ground, movements, requests, options.rounds, say)
    measured = grown._asdict() | {"sizes": grown.sizes._asdict()}
    return measured, list(goals.judge_growth(grown))


MEASURES = {"write": measure_writing, "read": measure_reading, "latency": measure_waiting, "growth": measure_growing}


def as_lists(runs: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, float]]]:
    """Return what JSON can hold."""
    return {name: [each._asdict() for each in of_name] for name, of_name in runs.items()}


def show_runs(title: str, runs: Mapping[str, Sequence[Any]], more: Sequence[str]) -> None:
    """Print medians, with the least and the greatest."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("rate", *more):
        table.add_column(name.replace("_us", ", µs").replace("_ms", ", ms").replace("_", " "), justify="right")
    for name, of_name in runs.items():
        rates = summarise([each.rate for each in of_name])
        others = [summarise([getattr(each, field) for each in of_name]) for field in more]
        table.add_row(name, f"{rates:,.0f}", *(f"{other:,.1f}" for other in others))
    console.print(table)


def show_goals(reached: Sequence[Goal]) -> None:
    """Print goal and figure side by side."""
    table = Table(title=f"{describe_machine()}, {datetime.now(UTC):%Y-%m-%d}", title_justify="left")
    for name in ("what", "goal", "figure", ""):
        table.add_column(name, justify="left" if name == "what" else "right")
    for goal in reached:
        table.add_row(goal.what, goal.goal, goal.figure, {True: "met", False: "missed", None: ""}[goal.met])
    console.print(table)


def describe_machine() -> str:
    """Return the machine in a few words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def say(words: str) -> None:
    """Tell how far it is, on standard error."""
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
