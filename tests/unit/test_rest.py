"""A drain rests when Postgres needs long to find the newest versions of its rows."""

from datetime import timedelta

import pytest

from worker.intake.rest import ENOUGH, REST_MAX_S, find_rest
from worker.ledger.batch import Posted


@pytest.mark.parametrize(
    ("locking_ms", "organisations", "taken", "rest_s"),
    [
        (1.9, 1, 10, 0),
        (3, 1, 10, 0.03),
        (3, 1, ENOUGH, 0),
        (41, 400, 450, 0),
        (43, 400, 450, REST_MAX_S),
        (5_000, 1, 10, REST_MAX_S),
        (-1, 1, 10, 0),
    ],
)
def test_the_rest_grows_with_the_time_of_locking(locking_ms, organisations, taken, rest_s):
    org_ids = {f"org_{number}" for number in range(organisations)}
    posted = Posted(org_ids=org_ids, locking=timedelta(milliseconds=locking_ms))
    assert find_rest(posted, taken) == pytest.approx(rest_s)
