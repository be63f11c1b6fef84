import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.conftest import OUR_VARIABLES
from tests.servers import CHECKOUT, server_folder, wait_until
from worker.local.valkey import free_port

READY_WITHIN_S = 60
pytestmark = pytest.mark.timeout(300)  # each test starts seven programs, some tests start them twice


class Up:
    """An `up` with a state folder and a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.port = free_port()
        self.out, self.err = folder / "out", folder / "err"
        visible = {name: value for name, value in os.environ.items() if name not in OUR_VARIABLES}
        self.environment = {**visible, "PYTHONPATH": str(CHECKOUT), "USAGE_FEEDS_STATE": str(self.state)}
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "worker", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, *options: str) -> None:
        with self.out.open("wb") as out, self.err.open("wb") as err:
            command = self.command("up", "--port", str(self.port), *options)
            self.process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=err)
        wait_until(lambda: "is up" in self.out.read_text() or self.process.poll() is not None, READY_WITHIN_S)
        assert self.process.poll() is None, self.err.read_text()

    def logged(self, words: str) -> bool:
        return words in self.err.read_text()

    def stop(self, signal_number: signal.Signals) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(60)


@pytest.fixture
def up(no_settings: None) -> Iterator[Up]:
    with server_folder() as folder:
        one = Up(folder)
        yield one
        if one.process and one.process.poll() is None:
            one.stop(signal.SIGTERM)
        print(one.out.read_text() if one.out.exists() else "", one.err.read_text() if one.err.exists() else "")


def descendants(pid: int) -> set[int]:
    """Return the processes that a process started, directly or through others."""
    children_of: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children_of.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        below = children_of.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def find_process(pids: set[int], words: str) -> int:
    """Return the first process whose command line holds these words."""
    return min(pid for pid in pids if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_page(up: Up, query: str = "limit=100") -> dict:
    """Return a page, read with the key of the curl line that `up --demo` printed."""
    key = re.search(r"Bearer (\w+)'", up.out.read_text())[1]
    request = Request(f"http://127.0.0.1:{up.port}/credits/usage?{query}", headers={"Authorization": f"Bearer {key}"})
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_demo_serves_every_kind_of_movement_within_a_minute_and_ctrl_c_stops_it_in_order(up):
    up.start("--demo")
    assert stat.S_IMODE((up.state / "addresses.json").stat().st_mode) == 0o600
    for kind in ("allot", "consume", "overflow", "expire", "revoke"):
        wait_until(lambda kind=kind: read_page(up, f"kind={kind}")["pages"]["total_items"], within_s=60)
    assert read_page(up)["pages"]["total_items"] > 40
    started = descendants(up.process.pid)

    assert up.stop(signal.SIGINT) == 0
    assert up.logged("It accepts connections for 0 s more.")  # a person waits
    stopped = re.findall(r"stopping (\w+)", up.err.read_text())
    assert stopped == ["demo", "schedule", "endpoint", "worker", "valkey", "postgres"]
    assert not up.logged("and was killed")
    assert not [pid for pid in started if is_running(pid)]
    assert not (up.state / "addresses.json").exists()


def test_a_killed_up_leaves_no_process_running_and_the_next_one_finds_its_data(up):
    up.start("--demo")
    wait_until(lambda: read_page(up)["pages"]["total_items"] > 20, within_s=30)
    started = descendants(up.process.pid)
    # guard, Postgres and its children, Valkey, worker and its pool, endpoint, schedule, demo
    assert len(started) >= 9

    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not [pid for pid in started if is_running(pid)], within_s=8)

    up.start("--demo")
    assert read_page(up)["pages"]["total_items"] > 20
    assert up.stop(signal.SIGTERM) == 0
    assert up.logged("It accepts connections for 5 s more.")


def test_up_restarts_a_dead_worker_and_ends_if_a_server_dies(up):
    up.start()
    worker = find_process(descendants(up.process.pid), "worker.tasks worker")
    assert up.run("health").returncode in {0, 1}
    looked_at = up.run("doctor", "--json")
    assert (looked_at.returncode, looked_at.stderr) == (0, "")
    [workers] = [each for each in json.loads(looked_at.stdout)["findings"] if each["about"] == "Workers"]
    assert (workers["level"], "(prefork, 2)" in workers["what"]) == ("ok", True)
    second = up.run("up", "--port", str(free_port()))
    assert second.returncode == 2
    assert f"Another `up` (process {up.process.pid}) runs from {up.state}" in second.stderr
    assert len(second.stderr.splitlines()) == 1

    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: up.logged("worker was killed by SIGKILL: restarting it (restart 1 of at most 5"), within_s=10)
    wait_until(lambda: up.err.read_text().count(" ready.") == 2, within_s=30)

    started = descendants(up.process.pid)
    os.kill(find_process(started, "valkey-server"), signal.SIGKILL)
    assert up.process.wait(60) == 2
    assert "usage-feeds: The valkey was killed by SIGKILL: everything is stopped" in up.err.read_text()
    assert not [pid for pid in started if is_running(pid)]


def test_a_port_in_use_is_reported_in_one_line_with_exit_code_2(up):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", up.port))
        listener.listen()
        refused = up.run("up", "--port", str(up.port))

    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"usage-feeds: Port {up.port} cannot be used")
    assert len(refused.stderr.splitlines()) == 1


def test_a_state_folder_that_another_postgres_wrote_is_refused_with_its_version(up):
    up.state.mkdir(mode=0o711)
    data = up.state / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")

    refused = up.run("up", "--port", str(up.port))

    assert refused.returncode == 2
    assert "was written by PostgreSQL 15" in refused.stderr
    assert "Traceback" not in refused.stderr
