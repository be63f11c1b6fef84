"""Do processes refuse to start if their settings differ from the ledger's facts?"""

import psycopg
import pytest

from tests.servers import with_database
from worker.local.valkey import free_port

DIFFERENT = {"EVENT_SHARDS": "9", "USAGE_KINDS": "ai_usage,x_usage", "EXPIRY_GRACE_S": "60"}
CELERY = ("-m", "celery", "-A", "worker.tasks")
PROGRAMS = {
    "worker": (*CELERY, "worker", "--concurrency", "1", "--loglevel", "info"),
    "beat": (*CELERY, "beat", "-s", "SCHEDULE"),
    "endpoint": ("-m", "worker", "serve", "--port", str(free_port())),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_process_whose_settings_differ_from_the_ledger_refuses_to_start_in_one_line_with_exit_code_2(
    processes, tmp_path, program
):
    command = [str(tmp_path / part) if part == "SCHEDULE" else part for part in PROGRAMS[program]]
    started = {name: processes.start(name, *command, env={name: value}) for name, value in DIFFERENT.items()}

    for variable, process in started.items():
        assert process.wait(30) == 2, processes.output(process)
        *_, line = processes.output(process).strip().splitlines()  # Celery prints its banner first
        assert f"{variable} is {DIFFERENT[variable]} here, but " in line
        assert f"set {variable}=" in line
        assert processes.output(process).count(variable) == line.count(variable)
        assert "Traceback" not in processes.output(process)


def test_no_process_starts_on_a_database_that_is_not_utf8(processes, tmp_path, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(
            "CREATE DATABASE usage_feeds_latin1 TEMPLATE template0 ENCODING LATIN1 LOCALE_PROVIDER libc LOCALE 'C'"
        )
        try:
            url = with_database(postgres_url, "usage_feeds_latin1")
            commands = [[str(tmp_path / part) if part == "SCHEDULE" else part for part in c] for c in PROGRAMS.values()]
            started = [processes.start("refused", *command, env={"DATABASE_URL": url}) for command in commands]
            for process in started:
                assert process.wait(30) == 2, processes.output(process)
                *_, line = processes.output(process).strip().splitlines()
                assert "encoding is LATIN1, but usage-feeds needs UTF8" in line
                assert "Traceback" not in processes.output(process)
        finally:
            server.execute("DROP DATABASE usage_feeds_latin1 WITH (FORCE)")


def test_a_worker_with_a_pool_of_threads_refuses_to_start_in_one_line_with_exit_code_2_and_solo_works(processes):
    refused = processes.start("worker", *CELERY, "worker", "--pool", "threads")
    solo = processes.start("worker", *CELERY, "worker", "--pool", "solo", "--loglevel", "info")

    assert refused.wait(30) == 2, processes.output(refused)
    *_, line = processes.output(refused).strip().splitlines()
    assert line.startswith("The pool celery.concurrency.thread runs several tasks in one process")
    assert "Traceback" not in processes.output(refused)
    processes.wait_for_line(solo, " ready.", within_s=30)
