"""Do the documents tell the truth: their commands, examples, links and tables?

A console block behind `<!-- example -->` is run, and prints what it shows. All other commands are parsed: a run of half
an hour, or one that needs a container engine, cannot be part of a test. Python blocks and the examples of deploy/ run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click
import psycopg
import pytest
import yaml
from celery import Celery
from redis import Redis

import run
from feeds.endpoint.asgi import USAGE_PATH
from feeds.state import state_dir
from tests.conftest import OUR_VARIABLES
from tests.servers import CHECKOUT
from worker.broker.app import EVENTS, make_app
from worker.commands import COMMANDS, cli
from worker.events import parse_event
from worker.intake.streams import shard_of, stream_of
from worker.migrations import roles

BLOCK = re.compile(r"^(<!-- example -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:usage-feeds|python3 run\.py|pip install|celery -A) [a-z'][^`]*)`")
LINK = re.compile(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)")
UNWRITTEN = {"worker/README.md", "feeds/README.md"}
LANGUAGES = {"console", "python", "js", "json", "sql", "mermaid", "text"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z")
EXAMPLES = CHECKOUT / "deploy" / "examples"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EVENT = {"type": "usage", "org_id": "org_a", "usage_kind": "ai_usage"}
REDIS_CLI = """
import sys, redis
_, quiet, u, url, *command = sys.argv
assert (quiet, u) == ("--no-auth-warning", "-u")
print(redis.Redis.from_url(url).execute_command(*command))
"""


class Block(NamedTuple):
    """A fenced block of a document."""

    place: str
    language: str
    text: str
    is_example: bool


def list_documents() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return sorted(CHECKOUT / name for name in listed.split("\0") if name and (CHECKOUT / name).is_file())


def name_of(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


DOCUMENTS = list_documents()
BLOCKS = [
    Block(f"{name_of(path)}:{text.count(chr(10), 0, found.start()) + 1}", found[2], found[3], bool(found[1]))
    for path in DOCUMENTS
    for text in [path.read_text()]
    for found in BLOCK.finditer(text)
]


def blocks(language, *, examples=None):
    """Return the blocks of a language as parameters: only examples, only others, or all."""
    chosen = [one for one in BLOCKS if one.language == language and examples in {None, one.is_example}]
    return [pytest.param(block, id=block.place) for block in chosen]


def steps(block):
    """Return the commands of a terminal's block, each with what it printed."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert not parts[0], f"{block.place}: a console block starts with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def plain(text):
    return [TIME.sub("TIME", line).rstrip() for line in text.splitlines()]


@pytest.fixture
def nothing_waits(redis_url):
    with Redis.from_url(redis_url) as redis:
        yield lambda: not any(redis.xlen(stream_of(shard)) for shard in range(8)) and not redis.llen(EVENTS)


@pytest.fixture
def look(database_url):
    """Return the function that returns the first column of a query."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield lambda query: [value for (value,) in connection.execute(query)]


def run_python(*arguments, **variables):
    """Run Python in the test's environment, from the checkout."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip


# --- what is run


@pytest.mark.parametrize("block", blocks("console", examples=True))
def test_an_example_prints_what_it_shows(block, processes, nothing_waits, wait_until):
    processes.worker()
    for command, printed in steps(block):
        words = shlex.split(command.removeprefix("python3 run.py ").removeprefix("usage-feeds "))
        done = run_python("-m", "worker", *words)
        assert done.returncode == 0, done.stderr
        assert not printed or plain(done.stdout) == plain(printed)
        wait_until(nothing_waits, within_s=10)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs_and_its_events_are_posted(block, processes, nothing_waits, look, wait_until):
    processes.worker()
    done = run_python("-c", block.text)
    assert done.returncode == 0, done.stderr
    wait_until(nothing_waits, within_s=10)
    assert look("SELECT code FROM dead_letters") == []
    assert "Producer" not in block.text or look("SELECT usage_ref FROM movements")


@pytest.fixture
def redis_cli(tmp_path, monkeypatch):
    """Put a `redis-cli` into PATH if this machine has none: one that knows the options of our example."""
    if not shutil.which("redis-cli"):
        program = tmp_path / "redis-cli"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(REDIS_CLI)} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("file", "refs"),
    [("stream.py", ["usage_1"]), ("celery_task.py", ["grant_1", "usage_2"]), ("stream.sh", ["usage_4"])],
)
def test_an_example_of_a_producer_posts_its_events(
    file, refs, processes, redis_url, redis_cli, look, nothing_waits, wait_until
):
    processes.worker()
    processes.schedule()
    program = "sh" if file.endswith(".sh") else sys.executable
    environment = {**os.environ, "CELERY_BROKER_URL": redis_url}
    subprocess.run([program, EXAMPLES / file], env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
    wait_until(lambda: sorted(set(look("SELECT usage_ref FROM movements"))) == refs, within_s=10)
    assert look("SELECT code FROM dead_letters") == []


def test_the_javascript_example_adds_a_good_event_to_the_right_shard():
    """It is read and not run, so that no test needs Node."""
    text = (EXAMPLES / "stream.mjs").read_text()
    [literal] = re.findall(r"const event = (\{.*\});", text)
    event = json.loads(re.sub(r"(\w+): ", r'"\1": ', literal))
    assert parse_event(json.dumps(event).encode()).org_id == event["org_id"] == "org_a"
    assert "crc32(event.org_id) % EVENT_SHARDS" in text
    assert 'xAdd(`events:{${shard}}`, "*", { event: JSON.stringify(event) })' in text
    assert stream_of(shard_of("org_a", 8)) in (EXAMPLES / "stream.sh").read_text()


def test_each_example_of_a_producer_is_tested_and_linked():
    files = {path.name for path in EXAMPLES.iterdir()}
    run_by_the_matrix = {"django_host.py", "fastapi_host.py"}
    assert files == {"stream.py", "stream.mjs", "stream.sh", "celery_task.py"} | run_by_the_matrix
    assert files <= set(re.findall(r"deploy/examples/([\w.]+)", (CHECKOUT / "README.md").read_text()))


def test_over_rabbitmq_the_celery_example_declares_the_queue_as_the_workers_do(monkeypatch):
    """RabbitMQ refuses a second declaration that differs from the first."""
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://localhost")
    sent = []
    monkeypatch.setattr(Celery, "send_task", lambda app, *_, queue, **__: sent.append(app.amqp.queues[queue]))
    exec(compile((EXAMPLES / "celery_task.py").read_text(), "celery_task.py", "exec"), {})
    assert [queue.as_dict(recurse=True) for queue in sent] == [
        make_app("amqp://localhost").amqp.queues[EVENTS].as_dict(recurse=True)
    ]


@pytest.mark.parametrize("block", blocks("sql"))
def test_postgres_accepts_the_sql_of_a_document(block, database_url):
    with psycopg.connect(database_url) as connection:
        roles.create_roles(connection)
        connection.execute(block.text)
        connection.rollback()


# --- what is parsed


@pytest.mark.parametrize("block", blocks("console", examples=False))
def test_a_command_of_a_console_block_can_be_run(block, monkeypatch):
    monkeypatch.setenv("USAGE_FEEDS_STATE", str(state_dir()))  # `--state` sets it
    for command, _ in steps(block):
        for part in command.split(" && "):
            check(shlex.split(part))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_command_within_a_sentence_exists_with_its_options(path):
    for command in INLINE.findall(path.read_text()):
        match shlex.split(command):
            case ["usage-feeds", *words] | ["python3", "run.py", *words] if words[0] in COMMANDS:
                check_options(words)  # with placeholders for values, so it cannot be parsed
            case words:
                check(words)


def check(words):
    """Fail unless the words start with a command of CHECKS, and what follows is right for it."""
    for length in range(len(words), 0, -1):
        if known := CHECKS.get(" ".join(words[:length])):
            known(words[length:])
            return
    pytest.fail(f"no test knows this command: {shlex.join(words)}")


def find_command(words):
    """Return a command of ours and the words that follow its name."""
    command = cli
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found, f"there is no command {name}"
        command = found
    return command, words


def check_options(words):
    """Fail unless a command of ours exists and has the options among the words."""
    command, words = find_command(words)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known


def parse(words):
    """Parse a command of ours, as if it were about to run; without words it is the demo."""
    if words:
        command, words = find_command(words)
        command.make_context(command.name, list(words))


@cache
def help_of(module, *commands):
    done = run_python("-m", module, *commands, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_help(program, words):
    """Fail unless the help of a program, a module and its command, names the options among the words."""
    assert find_spec(program[0])
    options = {word for word in words if re.match(r"--?[A-Za-z]", word)}
    assert {option for option in options if not re.search(rf"(?<![\w-]){option}\b", help_of(*program))} == set()


def check_pytest(words):
    """Fail unless the tests that pytest is to run exist."""
    assert all((CHECKOUT / word.partition("::")[0]).exists() for word in words if word.startswith("tests"))


def check_files(words):
    """Fail unless all that the words name exists, or its folder does if it is to be made."""
    files = [CHECKOUT / word for word in words if "/" in word or "." in word]
    assert all(file.exists() or file.parent.exists() for file in files)


def check_compose(words):
    """Fail unless docker compose has the command and its options, and the file the services."""
    option, file, command, *words = words
    assert option == "--file"
    services = yaml.safe_load((CHECKOUT / file).read_text())["services"]
    program = Path(sys.executable).with_name("docker-compose")
    shown = subprocess.run([program, command, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    if command == "exec":
        service, *inner = words
        assert service in services
        check(inner)
    else:
        options = {word for word in words if word.startswith("--")}
        assert {option for option in options if option not in shown} == set()
        assert {word.partition("=")[0] for word in words if "=" in word} <= services.keys()


def check_requirement(words):
    """Fail unless this project has the name and the extras."""
    name, _, extras = words[0].removesuffix("]").partition("[")
    assert name == PROJECT["name"]
    assert set(filter(None, extras.split(","))) <= PROJECT["optional-dependencies"].keys()


def check_curl(words):
    """Fail unless the words ask the endpoint for a page, with a key."""
    option, header, url = words
    assert option == "-H"
    assert header.startswith("Authorization: Bearer ufk_")
    assert urlsplit(url).path == USAGE_PATH


def check_nothing_follows(words):
    assert words == []


CHECKS = {
    "python3 run.py": parse,
    "usage-feeds": parse,
    "python3 run.py test": check_pytest,
    ".venv/bin/python -m pytest": check_pytest,
    **{f"python3 run.py {name}": partial(check_help, [module]) for name, module in run.TEST_MODULES.items()},
    **{
        f".venv/bin/python -m {name}": partial(check_help, [name])
        for name in ("tests.faults.mass_expiry", "tests.bench.chart")
    },
    **{f"celery -A worker.tasks {name}": partial(check_help, ["celery", name]) for name in ("worker", "beat")},
    "docker compose": check_compose,
    "pip install": check_requirement,
    f"git clone {PROJECT['urls']['Homepage']}.git": check_nothing_follows,
    "cd usage-feeds": check_nothing_follows,
    "curl": check_curl,
    "cp": check_files,
    "uv pip compile": check_files,
    ".ci/run": check_nothing_follows,
}


# --- what is compared


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_document_names_the_language_of_each_block_and_links_to_files_that_exist(path):
    assert {block.language for block in BLOCKS if block.place.startswith(f"{name_of(path)}:")} <= LANGUAGES
    for file, heading in LINK.findall(path.read_text()):
        target = path.parent / file if file else path
        assert target.exists() or file in UNWRITTEN, file
        assert not heading or heading in headings_of(target), f"{file}#{heading}"


def headings_of(path):
    """Return the headings of a document, as links write them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("block", blocks("json"))
def test_json_of_a_document_is_json(block):
    json.loads(block.text)


def table_of(document, heading):
    """Return the first cells of the table below a heading."""
    _, found, section = (CHECKOUT / document).read_text().partition(f"\n{heading}\n")
    assert found
    rows = re.findall(r"^\| (.*?) \|", re.split(r"^#", section, flags=re.MULTILINE)[0], re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row) for row in rows]


def test_the_operators_table_has_every_command_with_the_options_that_exist():
    rows = [words.split() for cell in table_of("deploy/README.md", "## Commands") for words in cell]
    assert {words[0] for words in rows} == COMMANDS.keys()
    for words in rows:
        check_options([word.strip("[]()") for word in words])


def test_the_operators_table_has_every_setting():
    assert [name for cell in table_of("deploy/README.md", "## Settings") for name in cell[:1]] == [*OUR_VARIABLES]


def test_the_operators_table_of_celerys_settings_has_the_values_of_the_app():
    conf = make_app("redis://localhost").conf
    options = conf.broker_transport_options
    rows = re.findall(r"^\| `([a-z_]+)` \| `([^`]+)` \|", (CHECKOUT / "deploy/README.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    for name, value in rows:
        assert json.loads(value) == (options[name] if name in options else conf[name]), name


def test_the_readme_is_short():
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 150


def test_every_file_that_the_fault_list_names_exists():
    text = (CHECKOUT / "tests/README.md").read_text()
    named = set(re.findall(r"`((?:unit|integration|acceptance|faults)/[\w/.-]+)`", text))
    assert len(named) > 20
    assert {name for name in named if not (CHECKOUT / "tests" / name).exists()} == set()
