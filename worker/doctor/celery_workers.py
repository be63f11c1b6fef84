"""Which Celery workers answer, and how do they run their tasks?"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from celery import Celery

from worker.broker.app import DRAINS, EVENTS
from worker.doctor.finding import Finding, fine, list_names, mend, note

ANSWER_WITHIN_S = 1.0
POOLS = {"prefork", "solo"}


class Worker(NamedTuple):
    """A worker of Celery: its pool, how many tasks it runs at once, and the queues that it consumes."""

    name: str
    pool: str
    processes: int
    queues: frozenset[str]


def look(app: Celery, event_shards: int) -> Iterator[Finding]:
    """Look at the workers. Raises the error of a broker that is away."""
    yield from judge_workers(read_workers(app), event_shards)


def read_workers(app: Celery) -> list[Worker]:
    """Ask all workers of the broker for their pools and queues. Returns those that consume a queue of ours.

    Raises kombu's OperationalError, or the error of the broker's client.
    """
    inspect = app.control.inspect(timeout=ANSWER_WITHIN_S)
    queues: Mapping[str, Any] = inspect.active_queues() or {}
    stats: Mapping[str, Any] = (inspect.stats() or {}) if queues else {}
    return [
        worker
        for name in sorted(queues.keys() & stats.keys())
        if (worker := parse_worker(name, queues[name], stats[name])).queues
    ]


def parse_worker(name: str, queues: Any, stats: Any) -> Worker:
    """Return what a worker has answered."""
    pool = stats.get("pool", {})
    # Such as celery.concurrency.prefork:TaskPool.
    kind = str(pool.get("implementation", "")).partition(":")[0].rpartition(".")[2]
    names = frozenset(queue.get("name") for queue in queues)
    return Worker(name, kind or "unknown", int(pool.get("max-concurrency") or 1), names & {EVENTS, DRAINS})


def judge_workers(workers: list[Worker], event_shards: int) -> list[Finding]:
    """Judge whether the workers' pools can do the work, and whether each queue has a consumer."""
    if not workers:
        what = f"No worker answers within {ANSWER_WITHIN_S:g} s."
        why = "Without one nothing is posted; its pool cannot be looked at."
        return [note("workers", what, why, "Start one, or ignore this if worker_enable_remote_control is off.")]
    found = []
    unfit = [f"{worker.name} ({worker.pool})" for worker in workers if worker.pool not in POOLS]
    if unfit:
        what = f"The pool of {list_names(unfit)} is not prefork."
        why = "A process has one connection to each server, for one thread."
        found.append(mend("pool", what, why, "Start the worker with `--pool prefork`, Celery's default."))
    missing = {EVENTS, DRAINS} - frozenset().union(*(worker.queues for worker in workers))
    if missing:
        what = f"No worker consumes the queue {' or '.join(sorted(missing))}."
        why = "Its messages wait for ever."
        found.append(mend("queues", what, why, "Start the workers without --queues, or with --queues events,drains."))
    processes = sum(worker.processes for worker in workers)
    if processes > event_shards:
        what = f"{processes} processes share {event_shards} shards."
        why = "At most one process posts a shard at a time; the others wait."
        found.append(note("processes", what, why, "Use fewer processes, or more shards (EVENT_SHARDS)."))
    names = list_names([f"{worker.name} ({worker.pool}, {worker.processes})" for worker in workers])
    return found or [fine("workers", f"{len(workers)} worker{'' if len(workers) == 1 else 's'}: {names}.")]
