import os
import signal
import socket
import sys
from pathlib import Path

import psycopg
import pytest
import redis

from tests.servers import server_folder
from worker.local import children, postgres, supervisor, valkey
from worker.local.children import Account
from worker.local.supervisor import ChildDied, Supervisor


@pytest.fixture
def folder():
    with server_folder() as path:
        yield path


def test_a_copy_of_the_wheels_programs_runs_if_the_account_cannot_read_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "can_read", lambda *_: False)
    monkeypatch.setattr(postgres, "SHARED_FOLDER", tmp_path / "shared")
    account = Account("anyone", os.geteuid(), os.getegid())

    programs = postgres.readable_programs(postgres.embedded_programs(), account)

    assert programs.is_relative_to(tmp_path)
    assert postgres.program_version(programs) == 18
    assert postgres.readable_programs(postgres.embedded_programs(), account) == programs


def test_data_goes_to_a_shared_folder_behind_a_link_if_the_account_cannot_read_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "can_read", lambda *_: False)
    monkeypatch.setattr(postgres, "SHARED_FOLDER", tmp_path / "shared")
    account = Account("anyone", os.geteuid(), os.getegid())

    homes = [postgres.readable_home(tmp_path / "state" / "postgres", account) for _ in range(2)]

    assert homes[0] == homes[1] == (tmp_path / "state" / "postgres").readlink()
    assert homes[0].parent == tmp_path / "shared"


def test_a_socket_folder_with_a_too_long_path_is_made_elsewhere_and_the_next_start_removes_it(tmp_path):
    home = tmp_path / ("long " * 20)
    home.mkdir()

    first = postgres.make_socket_folder(home, None)
    second = postgres.make_socket_folder(home, None)

    assert len(os.fsencode(second)) < postgres.SOCKET_PATH_BYTES
    assert (first.exists(), second.exists()) == (False, True)
    postgres.remove_socket_folder(home)
    assert not second.exists()


def test_postgres_finds_its_data_again_in_a_long_path_with_spaces_and_quotes(folder):
    home = folder / 'it\'s a "long" way' / ("x" * 100) / "postgres"
    home.parent.mkdir(mode=0o711, parents=True)
    home.parents[1].chmod(0o711)
    for statement in ("CREATE TABLE stored ()", "SELECT FROM stored"):
        with (folder / "log").open("wb") as log:
            server = postgres.start_postgres(home, log, settings=postgres.UNSAFE_BUT_FAST)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(statement)
            assert children.stop(server.process, postgres.SIGNALS, within_s=20)
            postgres.remove_socket_folder(server.home)


def test_a_start_removes_what_a_killed_initdb_left(folder):
    unfinished = folder / "postgres" / "initdb-killed"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").touch()
    with (folder / "log").open("wb") as log:
        server = postgres.start_postgres(folder / "postgres", log, settings=postgres.UNSAFE_BUT_FAST)
        assert children.stop(server.process, postgres.SIGNALS, within_s=20)

    assert not unfinished.exists()


def test_valkey_starts_again_with_its_data_port_and_password_and_takes_another_port_if_its_own_is_in_use(folder):
    urls = []
    with (folder / "log").open("wb") as log, socket.socket() as squatter:
        for _ in range(3):
            server = valkey.start_valkey(folder / 'a "b" c', log)
            urls.append(server.url)
            with redis.Redis.from_url(server.url) as client:
                assert client.incr("starts") == len(urls)
                assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            with redis.Redis(port=port_of(server.url)) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
            assert children.stop(server.process, valkey.SIGNALS, within_s=20)
            if len(urls) == 2:
                squatter.bind(("127.0.0.1", port_of(urls[0])))
                squatter.listen()

    assert urls[0] == urls[1] != urls[2]
    assert urls[0].rpartition(":")[0] == urls[2].rpartition(":")[0]


def test_a_child_that_dies_again_and_again_is_restarted_five_times_before_the_supervisor_gives_up(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", 0)
    supervised = Supervisor(tmp_path)
    supervised.start("loser", [sys.executable, "-c", "exit(3)"], signals=(signal.SIGTERM,), within_s=5)

    with pytest.raises(ChildDied, match="The loser ended with code 3, 6 times within a minute"):
        supervised.watch()

    assert capfd.readouterr().err.count("restarting it") == 5


def test_childrens_output_is_printed_line_by_line_under_their_names(tmp_path, capfd):
    supervised = Supervisor(tmp_path)
    speak = "import sys; print('one'); print('two', file=sys.stderr); print('unfinished', end='')"
    child = supervised.start("speaker", [sys.executable, "-c", speak], signals=(), within_s=5)
    assert children.wait_for(lambda: supervised.has_printed("speaker", b"unfinished"), 10, supervised.forward_output)
    children.end_group(child.process)

    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == [f"{'speaker':8} | {word}" for word in ("one", "two", "unfinished")]


def test_a_child_and_its_own_children_end_when_their_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    below = f"import os, time; os.fork(); open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    parent = (
        "import os, sys, time; from pathlib import Path; from worker.local import children;"
        f"children.start([sys.executable, '-c', {below!r}], cwd=Path('/'), env=dict(os.environ), output=1);"
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = children.start([sys.executable, "-c", parent], cwd=tmp_path, env=environment, output=1)
    assert children.wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, 20)
    process.kill()
    process.wait()

    assert children.wait_for(lambda: not any(map(is_running, pids.read_text().split())), 10)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].removesuffix("/0"))


def is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
