"""How do the figures look? `python -m tests.bench.chart JSON FOLDER` draws what `run.py bench --json` measured as SVG.

Two charts: write throughput against the peers, and the time of a page against its depth. Both on a logarithmic scale.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from tests.bench.reading import FROM_POSTGRES, PLAIN_PEER

WIDTH, BAR, LABEL, FOOT = 880, 26, 380, 40
OURS, THEIRS, INK, GRID = "#2563eb", "#94a3b8", "#1e293b", "#e2e8f0"


SERVED = {
    FROM_POSTGRES: "usage-feeds, over HTTP, page 40,000, 8 at once",
    PLAIN_PEER: "FastAPI and OFFSET, page 40,000, 8 at once",
}


class Bar(NamedTuple):
    """One bar: its label, its value as drawn and as written."""

    label: str
    value: float
    words: str
    is_ours: bool


def main() -> None:
    """Draw both charts."""
    found = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    note = f"{found['machine']}, {found['began'][:10]}, medians; logarithmic scale"
    (folder / "writing.svg").write_text(draw("Events posted a second", writing_bars(found["write"]["runs"]), note))
    (folder / "depth.svg").write_text(draw("Time of a page of 20, in ms", depth_bars(found["read"]), note))


def writing_bars(runs: dict[str, Any]) -> list[Bar]:
    """Return the rates, the highest first."""
    rates = {name: median(run["rate"] for run in of_name) for name, of_name in runs.items()}
    ordered = sorted(rates.items(), key=lambda pair: -pair[1])
    return [Bar(name, rate, f"{rate:,.0f}", name.startswith("usage-feeds")) for name, rate in ordered]


def depth_bars(read: dict[str, Any]) -> list[Bar]:
    """Return how long pages 1 and 40,000 take: ours for one asker of Postgres, then both sides as served to 8 at once."""
    depth = read["depths"][0]
    bars = [
        bar_of("usage-feeds, Postgres alone, page 1", depth["first_ms"], is_ours=True),
        bar_of(f"usage-feeds, Postgres alone, page {depth['deep_page']:,}", depth["deep_ms"], is_ours=True),
    ]
    for name, label in SERVED.items():
        if name in read["runs"]:
            served_ms = median(run["p50_ms"] for run in read["runs"][name])
            bars.append(bar_of(label, served_ms, is_ours=name == FROM_POSTGRES))
    return bars


def bar_of(label: str, ms: float, *, is_ours: bool) -> Bar:
    """Return the bar of a time."""
    return Bar(label, ms, f"{ms:,.2f} ms" if ms < 10 else f"{ms:,.0f} ms", is_ours)


def draw(title: str, bars: Sequence[Bar], note: str) -> str:
    """Return a chart of horizontal bars."""
    low = 10 ** math.floor(math.log10(min(bar.value for bar in bars)))
    high = 10 ** math.ceil(math.log10(max(bar.value for bar in bars)))
    height = 50 + BAR * len(bars) + FOOT

    def x(value: float) -> float:
        return LABEL + (WIDTH - LABEL - 90) * math.log(value / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(16, 28, title, INK, 'font-size="16" font-weight="bold"'),
    ]
    tick = low
    while tick <= high * 1.001:
        parts.append(f'<line x1="{x(tick):.0f}" y1="44" x2="{x(tick):.0f}" y2="{height - FOOT}" stroke="{GRID}"/>')
        parts.append(text(x(tick), height - FOOT + 16, f"{tick:,g}", THEIRS, 'text-anchor="middle"'))
        tick *= 10
    for number, bar in enumerate(bars):
        top = 50 + BAR * number
        colour = OURS if bar.is_ours else THEIRS
        parts.append(
            f'<rect x="{LABEL}" y="{top}" width="{x(bar.value) - LABEL:.0f}" height="{BAR - 8}" fill="{colour}"/>'
        )
        parts.append(text(LABEL - 8, top + 14, bar.label, INK, 'text-anchor="end"'))
        parts.append(text(x(bar.value) + 6, top + 14, bar.words, INK))
    return "\n".join([*parts, text(16, height - 8, note, THEIRS), "</svg>"]) + "\n"


def text(x: float, y: float, words: str, colour: str, more: str = "") -> str:
    """Return one line of text."""
    return f'<text x="{x:.0f}" y="{y}" fill="{colour}" {more}>{escape(words)}</text>'


if __name__ == "__main__":
    main()
