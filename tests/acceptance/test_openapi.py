import subprocess
import sys

import psycopg

from feeds.keys import create_key
from tests.seed import MIXED, seed


def test_the_endpoint_does_what_its_openapi_document_says(processes, environment, tmp_path):
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        seed(connection, "org_a", MIXED * 9)
        _, secret = create_key(connection, org_id="org_a")
    base = processes.endpoint()

    # Without positive_data_acceptance: a well-formed cursor is refused unless we signed it, and so is a well-formed header
    # that names another organisation.
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{base}/openapi.json",
        "--header", f"Authorization: Bearer {secret}", "--checks", "all",
        "--exclude-checks", "positive_data_acceptance", "--max-examples", "40", "--seed", "1", "--generation-database", "none",
        "--phases", "examples,coverage,fuzzing", "--no-color", "--request-timeout", "5",
    ]  # fmt: skip
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
