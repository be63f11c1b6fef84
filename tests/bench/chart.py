"""Draw the figures as SVG: `python -m tests.bench.chart JSON FOLDER`, where JSON is a file of `run.py bench --json`.

One chart compares the posting rate with the peers, the other the time of a page with its depth. Both scales are
logarithmic.
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

WIDTH, BAR_HEIGHT, LABEL_WIDTH, FOOT_HEIGHT = 880, 26, 380, 40
OUR_COLOUR, PEER_COLOUR, TEXT_COLOUR, GRID_COLOUR = "#2563eb", "#94a3b8", "#1e293b", "#e2e8f0"

SERVED = {
    FROM_POSTGRES: "usage-feeds, over HTTP, page 40,000, 8 at once",
    PLAIN_PEER: "FastAPI and OFFSET, page 40,000, 8 at once",
}


class Bar(NamedTuple):
    """One bar: its label, its value, and its value as text."""

    label: str
    value: float
    text: str
    is_ours: bool


def main() -> None:
    """Draw both charts."""
    found = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    note = f"{found['machine']}, {found['began'][:10]}, medians; logarithmic scale"
    (folder / "writing.svg").write_text(draw("Events posted a second", writing_bars(found["write"]["runs"]), note))
    (folder / "depth.svg").write_text(draw("Time of a page of 20, in ms", depth_bars(found["read"]), note))


def writing_bars(runs: dict[str, Any]) -> list[Bar]:
    """Return a bar for the rate of each contender, highest first."""
    rates = {name: median(run["rate"] for run in of_name) for name, of_name in runs.items()}
    ordered = sorted(rates.items(), key=lambda pair: -pair[1])
    return [Bar(name, rate, f"{rate:,.0f}", name.startswith("usage-feeds")) for name, rate in ordered]


def depth_bars(read: dict[str, Any]) -> list[Bar]:
    """Return bars for the time of pages 1 and 40,000: ours read from Postgres by one caller, then all served to 8 at once."""
    depth = read["depths"][0]
    bars = [
        time_bar("usage-feeds, only Postgres, page 1", depth["first_ms"], is_ours=True),
        time_bar(f"usage-feeds, only Postgres, page {depth['deep_page']:,}", depth["deep_ms"], is_ours=True),
    ]
    for name, label in SERVED.items():
        if name in read["runs"]:
            served_ms = median(run["p50_ms"] for run in read["runs"][name])
            bars.append(time_bar(label, served_ms, is_ours=name == FROM_POSTGRES))
    return bars


def time_bar(label: str, ms: float, *, is_ours: bool) -> Bar:
    """Return the bar for a time."""
    return Bar(label, ms, f"{ms:,.2f} ms" if ms < 10 else f"{ms:,.0f} ms", is_ours)


def draw(title: str, bars: Sequence[Bar], note: str) -> str:
    """Return a chart of horizontal bars."""
    low = 10 ** math.floor(math.log10(min(bar.value for bar in bars)))
    high = 10 ** math.ceil(math.log10(max(bar.value for bar in bars)))
    height = 50 + BAR_HEIGHT * len(bars) + FOOT_HEIGHT

    def x(value: float) -> float:
        return LABEL_WIDTH + (WIDTH - LABEL_WIDTH - 90) * math.log(value / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(16, 28, title, TEXT_COLOUR, 'font-size="16" font-weight="bold"'),
    ]
    tick = low
    while tick <= high * 1.001:
        parts.append(
            f'<line x1="{x(tick):.0f}" y1="44" x2="{x(tick):.0f}" y2="{height - FOOT_HEIGHT}" stroke="{GRID_COLOUR}"/>'
        )
        parts.append(text(x(tick), height - FOOT_HEIGHT + 16, f"{tick:,g}", PEER_COLOUR, 'text-anchor="middle"'))
        tick *= 10
    for number, bar in enumerate(bars):
        top = 50 + BAR_HEIGHT * number
        colour = OUR_COLOUR if bar.is_ours else PEER_COLOUR
        parts.append(
            f'<rect x="{LABEL_WIDTH}" y="{top}" width="{x(bar.value) - LABEL_WIDTH:.0f}" height="{BAR_HEIGHT - 8}" fill="{colour}"/>'
        )
        parts.append(text(LABEL_WIDTH - 8, top + 14, bar.label, TEXT_COLOUR, 'text-anchor="end"'))
        parts.append(text(x(bar.value) + 6, top + 14, bar.text, TEXT_COLOUR))
    return "\n".join([*parts, text(16, height - 8, note, PEER_COLOUR), "</svg>"]) + "\n"


def text(x: float, y: float, content: str, colour: str, attributes: str = "") -> str:
    """Return one line of text as SVG."""
    return f'<text x="{x:.0f}" y="{y}" fill="{colour}" {attributes}>{escape(content)}</text>'


if __name__ == "__main__":
    main()
