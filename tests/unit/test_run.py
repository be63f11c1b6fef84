"""Does run.py make the environment when it must, and run the right program?"""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import pytest

RUN = Path(__file__).parents[2] / "run.py"


@pytest.fixture
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_under_test", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the lock files that would be installed. The environments only hold an executable `python`."""
    made: list[str] = []

    def make(venv: Path, lock: Path) -> None:
        made.append(lock.read_text())
        python = venv / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch(mode=0o755)

    monkeypatch.setattr(run, "make", make)
    return made


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.lock"
    file.write_text("one==1")
    return file


def test_the_environment_is_made_once(run, installed, lock, tmp_path):
    for _ in range(2):
        run.set_up(tmp_path / ".venv", lock)

    assert installed == ["one==1"]


def test_the_environment_is_made_again_when_the_lock_file_has_changed(run, installed, lock, tmp_path):
    run.set_up(tmp_path / ".venv", lock)
    lock.write_text("one==2")
    run.set_up(tmp_path / ".venv", lock)

    assert installed == ["one==1", "one==2"]


def test_an_environment_that_was_left_unfinished_is_made_again(run, installed, lock, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)

    run.set_up(tmp_path / ".venv", lock)

    assert installed == ["one==1"]


def test_an_environment_without_its_python_is_made_again(run, installed, lock, tmp_path):
    run.set_up(tmp_path / ".venv", lock)
    (tmp_path / ".venv" / "bin" / "python").unlink()
    run.set_up(tmp_path / ".venv", lock)

    assert len(installed) == 2


def test_of_eight_processes_at_once_one_installed_the_environment(run, installed, lock, tmp_path):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: run.set_up(tmp_path / ".venv", lock), range(8)))

    assert installed == ["one==1"]


@pytest.fixture
def executed(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(run, "set_up", lambda *_: None)
    monkeypatch.setattr(run.os, "execve", lambda _, command, env: calls.append((command[1:], env)))
    return calls


def test_without_arguments_the_demo_runs(run, executed):
    run.main([])

    assert executed[0][0] == ["-m", "worker", "up", "--demo"]


def test_a_command_imports_from_the_checkout_and_uses_its_state_folder(run, executed, monkeypatch):
    monkeypatch.delenv("USAGE_FEEDS_STATE", raising=False)
    run.main(["feed", "org_a"])

    [(command, env)] = executed
    assert command == ["-m", "worker", "feed", "org_a"]
    assert (env["PYTHONPATH"], env["PYTHONSAFEPATH"]) == (str(RUN.parent), "1")
    assert env["USAGE_FEEDS_STATE"] == str(RUN.parent / ".usage-feeds")


@pytest.mark.parametrize(("name", "module"), [("faults", "tests.faults.long_run"), ("bench", "tests.bench")])
def test_the_commands_faults_and_bench_run_their_modules(run, executed, name, module):
    run.main([name, "--json", "file"])

    assert executed[0][0] == ["-m", module, "--json", "file"]


def test_a_state_folder_from_the_environment_is_used(run, executed, monkeypatch):
    monkeypatch.setenv("USAGE_FEEDS_STATE", "/elsewhere")
    run.main(["feed", "org_a"])

    assert executed[0][1]["USAGE_FEEDS_STATE"] == "/elsewhere"


def test_the_stages_stop_at_the_first_that_fails_and_its_name_is_printed(run, monkeypatch, capsys):
    ran: list[list[str]] = []

    def fail_lint(command: list[str], **_: object) -> CompletedProcess[str]:
        ran.append(command[2:])
        return CompletedProcess(command, int("check" in command))

    monkeypatch.setattr(run, "set_up", lambda *_: None)
    monkeypatch.setattr(run.subprocess, "run", fail_lint)
    with pytest.raises(SystemExit) as ended:
        run.main(["test", "-k", "lint"])

    assert ended.value.code == 1
    assert ran == [["ruff", "format", "--check", "."], ["ruff", "check", "."]]
    assert "the lint stage failed" in capsys.readouterr().err


def test_arguments_after_test_go_to_pytest(run, monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(run, "set_up", lambda *_: None)
    monkeypatch.setattr(run.subprocess, "run", lambda command, **_: ran.append(command) or CompletedProcess(command, 0))
    with pytest.raises(SystemExit) as ended:
        run.main(["test", "-k", "lint"])

    assert ended.value.code == 0
    assert ran[-1][2:] == ["pytest", "-k", "lint"]


def test_an_old_python_is_refused_in_one_line(run, monkeypatch):
    monkeypatch.setattr(run.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit) as ended:
        run.main([])

    assert str(ended.value.code).startswith("run.py: Python 3.11 or newer is needed")


def test_an_environment_that_cannot_be_made_is_reported_in_one_line(run, lock, monkeypatch):
    monkeypatch.setattr(run, "set_up", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(SystemExit) as ended:
        run.main([])

    assert "could not be made" in str(ended.value.code)
