"""Which files does `send` read, and what do commands print on terminals of other encodings?"""

import gzip
import json
import subprocess
import sys

import psycopg
import pytest

from tests.integration.command_line import run, run_json
from tests.servers import CHECKOUT

LINE = '{"type":"usage","org_id":"org_a","usage_ref":"%s","usage_kind":"ai_usage","credits":1}\n'
EVENTS = (LINE % "u" + LINE % "v").encode()
MARK = b"\xef\xbb\xbf"


def run_process(environment, *arguments):
    """Run a command in a process of its own, whose arguments may be bytes."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        cwd=CHECKOUT, env=environment, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "stdin", [MARK + EVENTS, MARK + b"\n" + EVENTS, MARK + b"\r\n" + EVENTS.replace(b"\n", b"\r\n")]
)
def test_send_drops_a_byte_order_mark_before_the_first_line(environment, stdin):
    assert run_json("send", "-", "--check", stdin=stdin) == {"good": 2, "bad": 0, "sent": 0}


def test_a_byte_order_mark_before_another_line_is_reported_with_the_lines_number(environment):
    result = run("send", "-", "--check", stdin=EVENTS + MARK + EVENTS, code=1)

    assert result.stdout == "3 good, 1 bad.\n"
    assert result.stderr == "line 3: undecodable: it begins with a byte order mark: send JSON in UTF-8 without one\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_send_refuses_a_file_in_another_encoding_in_one_line(environment, tmp_path, encoding):
    file = tmp_path / "events.jsonl"
    file.write_bytes(EVENTS.decode().encode(encoding))

    result = run("send", str(file), code=2)
    assert result.stderr == "usage-feeds: The file cannot be read: it is UTF-16 or UTF-32: send JSON in UTF-8.\n"


def test_send_refuses_a_compressed_file_in_one_line(environment):
    result = run("send", "-", stdin=gzip.compress(EVENTS), code=2)

    assert result.stderr.count("\n") == 1
    assert "it is compressed" in result.stderr


@pytest.fixture
def dead_letter(environment):
    """Bury an event that holds letters outside ASCII and an escape sequence of terminals. Returns its bytes as text."""
    raw = '{"organisation":"é €\x1b[31m\x9b"}'
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO dead_letters (stream, entry_id, digest, raw, raw_bytes, code, message, added_at)"
            " VALUES ('events:{0}', '1-1', %s, %s, 1, 'invalid_event', 'é is wrong', now())",
            [b"d" * 32, raw.encode()],
        )
    return raw


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_commands_work_on_a_terminal_that_is_not_utf_8(environment, dead_letter, variables):
    def printed(*arguments):
        done = run_process(environment | variables, *arguments)
        assert (done.returncode, done.stderr) == (0, b""), arguments
        return done.stdout

    assert json.loads(printed("dead", "show", "1", "--json"))["raw"] == dead_letter
    assert b"is wrong" in printed("dead", "list")
    shown = printed("dead", "show", "1")
    assert b"organisation" in shown
    assert b"\x1b" not in shown
    printed("send", "--help")


def test_arguments_that_are_not_utf_8_are_refused_in_one_line(environment):
    for arguments in (
        ("balance", b"\xff"),
        ("usage", "org_a", "ai_usage", "1", "--ref", b"\xff"),
        ("revoke", "org_a", "g", "--reason", b"\xff"),
        ("dead", "list", "--org", b"\xff"),
    ):
        done = run_process(environment, *arguments)
        assert done.returncode in {1, 2}, arguments
        assert done.stderr.count(b"\n") == 1, done.stderr.decode()


def test_a_text_cannot_send_commands_to_the_terminal(environment, dead_letter):
    shown = run("dead", "show", "1").stdout

    assert "\\x1b[31m\\x9b" in shown
    assert "é €" in shown
