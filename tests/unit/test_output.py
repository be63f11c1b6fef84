"""How is a table printed on terminals of different widths?"""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from worker.commands import output

AT = datetime(2026, 11, 22, 21, 16, 27, 123456, tzinfo=UTC)
REF = "grant_01h455vb4pex5vsknk084sn02q"


def print_lines(monkeypatch, width, *rows):
    """Return the lines that `print_table` prints on a terminal of this width."""
    screen = io.StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(width=width, file=screen, highlight=False))
    output.print_table([f"c{place}" for place in range(len(rows[0]))], rows)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize(
    "row",
    [
        (REF, "revoked", 10, 2_000, 1_379, AT, AT),
        (REF, REF, REF, "billing:read", AT),
        ("org_a", "x" * 200, 1),
        (REF, "pending", 10, 300, 0, None, AT),
    ],
)
def test_a_terminal_of_80_columns_cuts_nothing_off(monkeypatch, row):
    lines = print_lines(monkeypatch, 80, row)

    assert max(map(len, lines)) <= 80
    printed = "".join(lines[1:]).replace(" ", "")
    wanted = "".join(output.format_cell(value) for value in row).replace("T", "")
    assert sorted(printed.replace("T", "")) == sorted(wanted.replace(" ", ""))


def test_a_time_folds_between_date_and_time_of_day_and_refs_do_not_fold(monkeypatch):
    _, first, second = print_lines(monkeypatch, 80, (REF, "pending", 10, 300, 1000, AT, AT))[:3]

    assert first.split() == [REF, "pending", "10", "300", "1,000", "2026-11-22", "2026-11-22"]
    assert second.split() == ["21:16:27Z", "21:16:27Z"]


def test_on_a_wide_terminal_a_row_is_one_line_and_a_time_is_rfc_3339(monkeypatch):
    assert print_lines(monkeypatch, 120, (REF, 1, AT))[1:] == [f"{REF}  1 2026-11-22T21:16:27Z"]


@pytest.mark.parametrize(("number", "words"), [(0, "0 events"), (1, "1 event"), (1000, "1,000 events")])
def test_a_count_has_the_singular_or_plural_of_its_noun(number, words):
    assert output.count(number, "event") == words
