"""A drain died after the commit: its batch is read again, and every event in it is already known."""

import signal

from tests.faults.events_and_pages import grant, send, usage
from tests.faults.test_crash_points import DRAIN_THAT_DIES_AT

TWICE = [usage("u1", credits=7), usage("u1", credits=7), grant("g"), grant("g"), usage("u2", credits=7)]


def test_an_event_that_a_batch_holds_twice_is_not_a_conflict_when_the_batch_is_read_again(
    processes, client, connection, refs, dead_letters, count_waiting, wait_until
):
    """The long run found this: the known credits of a usage were added up once for each time that the batch held it."""
    send(client, *TWICE, *TWICE)
    killed = processes.start("drain", "-c", DRAIN_THAT_DIES_AT, "publish")
    assert killed.wait(timeout=20) == -signal.SIGKILL
    assert count_waiting() == 2 * len(TWICE)
    processes.worker()
    processes.schedule()
    wait_until(lambda: count_waiting() == 0, within_s=10)
    assert refs() == ["u1", "g", "u2"]
    assert dead_letters() == []
