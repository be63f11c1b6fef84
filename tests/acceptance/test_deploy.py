"""Do the compose file and the Dockerfile work? Their commands run as plain processes: no container engine is needed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psycopg
import pytest
import redis

from tests.conftest import OUR_VARIABLES
from tests.servers import CHECKOUT, Processes, wait_until
from worker.broker.app import make_app
from worker.intake.streams import AWAKE, shard_of, stream_of
from worker.local.postgres import embedded_programs
from worker.local.valkey import embedded_program, free_port

DEPLOY = CHECKOUT / "deploy"
SECRETS = {"POSTGRES_PASSWORD": "databasesecret", "VALKEY_PASSWORD": "valkeysecret"}
OF_OURS = ("migrate", "worker", "schedule", "endpoint")
EXECUTE = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
PING = """
import os, sys, redis
_, p, port, command = sys.argv
assert (p, command) == ("-p", "ping"), sys.argv
print("PONG" if redis.Redis(port=int(port), password=os.environ["REDISCLI_AUTH"]).ping() else "")
"""


def compose(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run docker-compose on our file, with these variables and without the user's."""
    settings = folder / "settings.env"
    settings.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    program = Path(sys.executable).with_name("docker-compose")
    command = [program, "--file", DEPLOY / "compose.yaml", "--env-file", settings, "config", *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the services of the compose file, as an engine gets them."""
    done = compose(tmp_path_factory.mktemp("compose"), "--format", "json", **SECRETS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.replace("$$", "$"))["services"]


def seconds(duration: str) -> int:
    parts = dict(zip("ms", re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration).groups(), strict=True))
    return 60 * int(parts["m"] or 0) + int(parts["s"] or 0)


def instructions(name: str) -> list[str]:
    """Return the arguments of all instructions of that name in the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)


class Containers:
    """The services of the compose file, each as a plain process. Only addresses and folders are replaced."""

    def __init__(self, services: dict, folder: Path, database_url: str) -> None:
        self.services = services
        self.database_url = database_url
        self.port, self.valkey_port = free_port(), free_port()
        database = psycopg.conninfo.conninfo_to_dict(database_url)
        self.replaced = {
            "postgres": {"127.0.0.1": database["host"], "5432": str(database.get("port", 5432))},
            "valkey": {"bind * -::*": "bind 127.0.0.1", "6379": str(self.valkey_port), "/data": str(folder)},
            "schedule": {"/tmp/": f"{folder}/"},
            "endpoint": {"0.0.0.0": "127.0.0.1", "8000": str(self.port)},
        }
        bare = {"PATH": f"{self.programs(folder / 'bin')}:/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT)}
        kept = {name: os.environ[name] for name in ("USAGE_FEEDS_STATE",)}
        self.processes = Processes(folder, {**bare, **kept})

    def programs(self, folder: Path) -> Path:
        """Create the programs that the images have."""
        folder.mkdir()
        python = shlex.quote(sys.executable)
        wanted = {
            "python": python,
            "usage-feeds": f"{python} -m worker",
            "celery": f"{python} -W ignore:You -m celery",
            "pg_isready": shlex.quote(str(embedded_programs() / "pg_isready")),
            "valkey-server": shlex.quote(str(embedded_program())),
            "valkey-cli": shutil.which("redis-cli") or f"{python} -c {shlex.quote(PING)}",
        }
        for name, program in wanted.items():
            (folder / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
            (folder / name).chmod(0o755)
        return folder

    def replace(self, service: str, words: list[str]) -> list[str]:
        for old, new in self.replaced.get(service, {}).items():
            words = [word.replace(old, new) for word in words]
        return words

    def environment(self, service: str) -> dict[str, str]:
        given = dict(self.services[service]["environment"])
        if "DATABASE_URL" in given:
            assert given["DATABASE_URL"] == "postgresql://usage_feeds:databasesecret@postgres:5432/usage_feeds"
            given["DATABASE_URL"] = self.database_url
            given["REDIS_URL"] = given["REDIS_URL"].replace("valkey:6379", f"127.0.0.1:{self.valkey_port}")
        return given

    @property
    def redis_url(self) -> str:
        return self.environment("worker")["REDIS_URL"]

    def start(self, service: str):
        command = self.replace(service, self.services[service]["command"])
        return self.processes.start(service, "-c", EXECUTE, *command, env=self.environment(service))

    def run(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's environment, and wait for its end."""
        environment = {**self.processes.environment, **self.environment(service)}
        return subprocess.run(
            [sys.executable, "-c", EXECUTE, *command],
            env=environment, cwd=self.processes.folder, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def is_healthy(self, service: str) -> bool:
        kind, *words = self.services[service]["healthcheck"]["test"]
        shell = ["sh", "-c"] if kind == "CMD-SHELL" else []
        return self.run(service, *shell, *self.replace(service, words)).returncode == 0


@pytest.fixture
def containers(services: dict, tmp_path: Path, empty_database_url: str) -> Iterator[Containers]:
    started = Containers(services, tmp_path, empty_database_url)
    yield started
    started.processes.end()


def test_the_composed_processes_take_an_event_and_serve_a_page(containers):
    assert containers.is_healthy("postgres")
    valkey = containers.start("valkey")
    wait_until(lambda: containers.is_healthy("valkey"), within_s=20)
    assert not any(containers.is_healthy(service) for service in ("worker", "schedule", "endpoint"))
    migrate = containers.start("migrate")
    assert migrate.wait(60) == 0, containers.processes.output(migrate)
    started = {service: containers.start(service) for service in ("worker", "schedule", "endpoint")}
    for service in started:
        wait_until(lambda service=service: containers.is_healthy(service), within_s=40)

    with redis.Redis.from_url(containers.redis_url) as client:
        event = {"type": "usage", "org_id": "org_a", "usage_ref": "u", "usage_kind": "ai_usage", "credits": 7}
        client.xadd(stream_of(shard_of("org_a", 8)), {"event": json.dumps(event)})
        wait_until(lambda: client.xlen(stream_of(shard_of("org_a", 8))) == 0, within_s=30)
        wait_until(lambda: not client.exists(AWAKE))  # a running drain may take the 50 s of the soft shutdown
    key = containers.run("endpoint", "usage-feeds", "keys", "create", "--org", "org_a").stdout.split()[-1]
    request = Request(f"http://127.0.0.1:{containers.port}/credits/usage", headers={"Authorization": f"Bearer {key}"})
    with urlopen(request, timeout=10) as answer:
        assert [item["credits"] for item in json.load(answer)["items"]] == [-7]

    for service, process in reversed({"valkey": valkey, **started}.items()):
        grace = seconds(containers.services[service]["stop_grace_period"])
        assert containers.processes.stop(process, within_s=min(grace, 30)) == 0, service
    # A soft shutdown ends as a cold one; a warm one does not.
    assert "Cold shutdown" in containers.processes.output(started["worker"])
    assert not any(containers.is_healthy(service) for service in ("valkey", "worker", "schedule", "endpoint"))


def test_the_server_of_the_streams_keeps_events_when_it_is_killed_and_never_evicts(containers):
    valkey = containers.start("valkey")
    wait_until(lambda: containers.is_healthy("valkey"), within_s=20)
    with redis.Redis.from_url(containers.redis_url) as client:
        settings = client.config_get("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
        client.xadd("events:{0}", {"event": "kept"})
    assert settings == {
        "appendonly": "yes", "appendfsync": "everysec", "save": "",
        "maxmemory": str(2**30), "maxmemory-policy": "noeviction",
    }  # fmt: skip
    arguments = Path(f"/proc/{valkey.pid}/cmdline")
    assert not arguments.exists() or b"valkeysecret" not in arguments.read_bytes()

    containers.processes.kill(valkey)
    containers.start("valkey")
    wait_until(lambda: containers.is_healthy("valkey"), within_s=20)
    with redis.Redis.from_url(containers.redis_url) as client:
        assert client.xlen("events:{0}") == 1
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=containers.valkey_port) as client:
        client.ping()


def test_without_passwords_the_file_is_refused(tmp_path):
    assert compose(tmp_path, "--quiet", **SECRETS).returncode == 0
    for name in SECRETS:
        refused = compose(tmp_path, "--quiet", **{**SECRETS, name: ""})
        assert refused.returncode != 0
        assert f"{name} is missing a value" in refused.stderr


def test_the_example_names_each_variable_of_the_compose_file_and_holds_no_secret():
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    example = (DEPLOY / ".env.example").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, flags=re.MULTILINE)) == used
    assert {line for line in example.splitlines() if line and not line.startswith("#")} == {
        "POSTGRES_PASSWORD=",
        "VALKEY_PASSWORD=",
    }


def test_every_process_of_ours_gets_every_setting_except_the_reader_s_database(services):
    for service in OF_OURS:
        assert set(OUR_VARIABLES) - set(services[service]["environment"]) == {"READER_DATABASE_URL"}


def test_only_the_endpoint_is_published_and_by_default_on_loopback(services):
    assert {name: service["ports"][0]["host_ip"] for name, service in services.items() if "ports" in service} == {
        "endpoint": "127.0.0.1"
    }
    assert {name for name, service in services.items() if "front" in service["networks"]} == {"endpoint"}


def test_nothing_runs_as_root_or_writes_outside_its_folders(services):
    for name, service in services.items():
        assert service["user"] not in ("", "0", "root"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert instructions("USER") == [services["worker"]["user"]]


def test_every_service_is_restarted_probed_and_given_time_to_stop(services):
    for name, service in services.items():
        assert service["restart"] == ("on-failure:5" if name == "migrate" else "unless-stopped"), name
        assert ("healthcheck" in service) == (name != "migrate"), name
        assert seconds(service["stop_grace_period"]) >= 10, name


def test_the_worker_has_time_for_its_soft_shutdown(services):
    worker = services["worker"]
    assert worker["environment"]["REMAP_SIGTERM"] == signal.SIGQUIT.name
    soft = make_app("redis://127.0.0.1").conf.worker_soft_shutdown_timeout
    assert soft + 20 <= seconds(worker["stop_grace_period"])


def test_the_image_starts_the_endpoint_by_default(services):
    assert [json.loads(command) for command in instructions("CMD")] == [services["endpoint"]["command"]]
    assert instructions("ENTRYPOINT") == instructions("HEALTHCHECK") == []


def test_the_image_s_wheel_holds_every_file_of_both_packages(tmp_path):
    copied = [words for words in map(str.split, instructions("COPY")) if not words[0].startswith("--")]
    admitted = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for words in copied for source in words[:-1]} == admitted
    for source in admitted:
        copy = shutil.copytree if (CHECKOUT / source).is_dir() else shutil.copy2
        copy(CHECKOUT / source, tmp_path / source)
    [build] = [step for step in instructions("RUN") if 'hatchling" build' in step]
    environment = {**os.environ, "WHEELS": str(tmp_path / "wheels"), "TOOLS": sys.prefix}
    subprocess.run(["sh", "-euc", build], cwd=tmp_path, env=environment, check=True, timeout=60)

    [wheel] = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for package in ("feeds", "worker") for path in (CHECKOUT / package).rglob("*") if path.is_file()]
    assert held == {path.relative_to(CHECKOUT).as_posix() for path in files if "__pycache__" not in path.parts}
