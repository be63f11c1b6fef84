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


def test_a_copy_of_the_servers_tree_runs_where_the_account_cannot_reach_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "reaches", lambda *_: False)
    monkeypatch.setattr(postgres, "SHARED", tmp_path / "shared")
    account = Account("anyone", os.geteuid(), os.getegid())

    programs = postgres.reachable_programs(postgres.embedded_programs(), account)

    assert programs.is_relative_to(tmp_path)
    assert postgres.program_version(programs) == 18
    assert postgres.reachable_programs(postgres.embedded_programs(), account) == programs


def test_data_that_the_account_cannot_reach_lies_elsewhere_behind_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "reaches", lambda *_: False)
    monkeypatch.setattr(postgres, "SHARED", tmp_path / "shared")
    account = Account("anyone", os.geteuid(), os.getegid())

    homes = [postgres.reachable_home(tmp_path / "state" / "postgres", account) for _ in range(2)]

    assert homes[0] == homes[1] == (tmp_path / "state" / "postgres").readlink()
    assert homes[0].parent == tmp_path / "shared"


def test_a_socket_whose_path_would_be_too_long_lies_elsewhere_and_goes_with_the_next_start(tmp_path):
    home = tmp_path / ("long " * 20)
    home.mkdir()

    first = postgres.make_socket_folder(home, None)
    second = postgres.make_socket_folder(home, None)

    assert len(os.fsencode(second)) < postgres.SOCKET_PATH_BYTES
    assert (first.exists(), second.exists()) == (False, True)
    postgres.remove_socket_folder(home)
    assert not second.exists()


def test_postgres_keeps_its_data_in_a_folder_with_spaces_and_quotes_whose_path_is_long(folder):
    home = folder / 'it\'s a "long" way' / ("x" * 100) / "postgres"
    home.parent.mkdir(mode=0o711, parents=True)
    home.parents[1].chmod(0o711)
    for statement in ("CREATE TABLE kept ()", "SELECT FROM kept"):
        with (folder / "log").open("wb") as log:
            server = postgres.start_postgres(home, log, settings=postgres.UNSAFE_BUT_FAST)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(statement)
            assert children.stop(server.process, postgres.SIGNALS, within_s=20)
            postgres.remove_socket_folder(server.home)


def test_an_initdb_that_was_killed_is_forgotten(folder):
    half_made = folder / "postgres" / "initdb-killed"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").touch()
    with (folder / "log").open("wb") as log:
        server = postgres.start_postgres(folder / "postgres", log, settings=postgres.UNSAFE_BUT_FAST)
        assert children.stop(server.process, postgres.SIGNALS, within_s=20)

    assert not half_made.exists()


def test_valkey_keeps_data_port_and_its_password_and_takes_another_port_where_its_own_is_taken(folder):
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


def test_a_child_that_keeps_dying_is_started_again_five_times_then_all_ends(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", 0)
    one = Supervisor(tmp_path)
    one.start("loser", [sys.executable, "-c", "exit(3)"], signals=(signal.SIGTERM,), within_s=5)

    with pytest.raises(ChildDied, match="The loser ended with code 3, 6 times within a minute"):
        one.watch()

    assert capfd.readouterr().err.count("starting it again") == 5


def test_what_children_print_is_passed_on_line_by_line_under_their_names(tmp_path, capfd):
    one = Supervisor(tmp_path)
    speak = "import sys; print('one'); print('two', file=sys.stderr); print('unfinished', end='')"
    child = one.start("speaker", [sys.executable, "-c", speak], signals=(), within_s=5)
    assert children.wait_for(lambda: one.has_printed("speaker", b"unfinished"), 10, one.pump)
    children.end_group(child.process)

    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == [f"{'speaker':8} | {word}" for word in ("one", "two", "unfinished")]


def test_a_child_and_its_own_children_end_with_the_process_that_started_them(tmp_path):
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
