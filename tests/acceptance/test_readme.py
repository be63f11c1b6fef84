"""What the README shows was run, and comes out as it says."""

import re
import subprocess
import sys

import psycopg
import pytest

from tests.servers import CHECKOUT

README = (CHECKOUT / "README.md").read_text()
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def steps(block):
    """Return the commands of a terminal's block, each with what it printed."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def plain(text):
    return [TIME.sub("TIME", line).rstrip() for line in text.splitlines()]


def test_the_worked_example_prints_what_it_says(processes, environment, database_url, wait_until):
    processes.worker()
    [example] = [block for block in blocks("console") if "welcome" in block]
    with psycopg.connect(database_url, autocommit=True) as connection:

        def count_lines():
            return connection.execute("SELECT count(*) FROM movements").fetchone()[0]

        for command, printed in steps(example):
            if "feed" in command:
                wait_until(lambda: count_lines() == 5, within_s=5)
            words = command.removeprefix("python3 run.py ").split()
            ran = subprocess.run(
                [sys.executable, "-m", "worker", *words], check=False, capture_output=True, text=True, cwd=CHECKOUT
            )
            assert (ran.returncode, plain(ran.stdout)) == (0, plain(printed)), ran.stderr
            if "feed" not in command and "revoke" not in command:
                wait_until(lambda: count_lines() > 0, within_s=5)


@pytest.mark.parametrize("snippet", blocks("python"), ids=["producer", "celery"])
def test_the_python_examples_post_their_events(processes, environment, database_url, wait_until, snippet):
    processes.worker()
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=CHECKOUT)
    with psycopg.connect(database_url, autocommit=True) as connection:
        wait_until(lambda: connection.execute("SELECT count(*) FROM movements").fetchone()[0] > 0, within_s=5)
        assert connection.execute("SELECT count(*) FROM dead_letters").fetchone() == (0,)
