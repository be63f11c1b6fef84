"""A batch that is read again, as its drain died after the commit: every event in it is known by then."""

import signal

from tests.faults.asks import grant, send, usage
from tests.faults.test_crash_points import DIES_AT

TWICE = [usage("u1", credits=7), usage("u1", credits=7), grant("g"), grant("g"), usage("u2", credits=7)]


def test_an_event_that_is_twice_in_a_batch_is_no_conflict_when_the_batch_is_read_again(
    processes, client, connection, refs, dead, waiting, wait_until
):
    """The long form found it: the known credits of a usage were summed once for each time that the batch named it."""
    send(client, *TWICE, *TWICE)
    killed = processes.start("drain", "-c", DIES_AT, "publish")
    assert killed.wait(timeout=20) == -signal.SIGKILL
    assert waiting() == 2 * len(TWICE)
    processes.worker()
    processes.schedule()
    wait_until(lambda: waiting() == 0, within_s=10)
    assert refs() == ["u1", "g", "u2"]
    assert dead() == []
