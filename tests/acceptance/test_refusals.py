"""Processes whose settings are not the ledger's do not start."""

import pytest

from worker.local.valkey import free_port

DIFFERENT = {"EVENT_SHARDS": "9", "USAGE_KINDS": "ai_usage,x_usage", "EXPIRY_GRACE_S": "60"}
CELERY = ("-m", "celery", "-A", "worker.tasks")
PROGRAMS = {
    "worker": (*CELERY, "worker", "--concurrency", "1", "--loglevel", "info"),
    "beat": (*CELERY, "beat", "-s", "SCHEDULE"),
    "endpoint": ("-m", "worker", "serve", "--port", str(free_port())),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_process_that_is_told_otherwise_than_the_ledger_refuses_to_start_with_one_line_and_code_2(
    processes, tmp_path, program
):
    command = [str(tmp_path / part) if part == "SCHEDULE" else part for part in PROGRAMS[program]]
    started = {name: processes.start(name, *command, env={name: value}) for name, value in DIFFERENT.items()}

    for variable, process in started.items():
        assert process.wait(30) == 2, processes.output(process)
        *_, line = processes.output(process).strip().splitlines()  # Celery says who it is, before
        assert f"{variable} is {DIFFERENT[variable]} here, but " in line
        assert f"set {variable}=" in line
        assert processes.output(process).count(variable) == line.count(variable)
        assert "Traceback" not in processes.output(process)
