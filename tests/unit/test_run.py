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
def makes(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record what would be installed, and make an environment that only looks like one."""
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


def test_an_environment_is_made_once(run, makes, lock, tmp_path):
    for _ in range(2):
        run.set_up(tmp_path / ".venv", lock)

    assert makes == ["one==1"]


def test_an_environment_is_made_anew_when_the_lock_file_changed(run, makes, lock, tmp_path):
    run.set_up(tmp_path / ".venv", lock)
    lock.write_text("one==2")
    run.set_up(tmp_path / ".venv", lock)

    assert makes == ["one==1", "one==2"]


def test_an_environment_whose_making_was_killed_is_made_anew(run, makes, lock, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)

    run.set_up(tmp_path / ".venv", lock)

    assert makes == ["one==1"]


def test_an_environment_whose_python_is_gone_is_made_anew(run, makes, lock, tmp_path):
    run.set_up(tmp_path / ".venv", lock)
    (tmp_path / ".venv" / "bin" / "python").unlink()
    run.set_up(tmp_path / ".venv", lock)

    assert len(makes) == 2


def test_of_many_at_once_one_makes_the_environment(run, makes, lock, tmp_path):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: run.set_up(tmp_path / ".venv", lock), range(8)))

    assert makes == ["one==1"]


@pytest.fixture
def executed(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(run, "set_up", lambda *_: None)
    monkeypatch.setattr(run.os, "execve", lambda _, command, env: calls.append((command[1:], env)))
    return calls


def test_alone_it_runs_the_demo(run, executed):
    run.main([])

    assert executed[0][0] == ["-m", "worker", "up", "--demo"]


def test_a_command_imports_from_the_checkout_alone_and_finds_its_state_there(run, executed, monkeypatch):
    monkeypatch.delenv("USAGE_FEEDS_STATE", raising=False)
    run.main(["feed", "org_a"])

    [(command, env)] = executed
    assert command == ["-m", "worker", "feed", "org_a"]
    assert (env["PYTHONPATH"], env["PYTHONSAFEPATH"]) == (str(RUN.parent), "1")
    assert env["USAGE_FEEDS_STATE"] == str(RUN.parent / ".usage-feeds")


@pytest.mark.parametrize(("name", "module"), [("faults", "tests.faults.long"), ("bench", "tests.bench")])
def test_faults_and_the_benchmark_run_from_the_checkout(run, executed, name, module):
    run.main([name, "--json", "file"])

    assert executed[0][0] == ["-m", module, "--json", "file"]


def test_a_state_folder_that_is_set_stays(run, executed, monkeypatch):
    monkeypatch.setenv("USAGE_FEEDS_STATE", "/elsewhere")
    run.main(["feed", "org_a"])

    assert executed[0][1]["USAGE_FEEDS_STATE"] == "/elsewhere"


def test_the_checks_stop_at_the_first_that_fails_and_say_which(run, monkeypatch, capsys):
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


def test_arguments_after_test_are_pytests(run, monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(run, "set_up", lambda *_: None)
    monkeypatch.setattr(run.subprocess, "run", lambda command, **_: ran.append(command) or CompletedProcess(command, 0))
    with pytest.raises(SystemExit) as ended:
        run.main(["test", "-k", "lint"])

    assert ended.value.code == 0
    assert ran[-1][2:] == ["pytest", "-k", "lint"]


def test_an_old_python_gets_one_line(run, monkeypatch):
    monkeypatch.setattr(run.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit) as ended:
        run.main([])

    assert str(ended.value.code).startswith("run.py: Python 3.11 or newer is needed")


def test_an_environment_that_cannot_be_made_is_one_line(run, lock, monkeypatch):
    monkeypatch.setattr(run, "set_up", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(SystemExit) as ended:
        run.main([])

    assert "could not be made" in str(ended.value.code)
