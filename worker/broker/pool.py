"""Which of Celery's pools can run our tasks?"""

import sys
from typing import Any

from celery import concurrency
from celery.concurrency import prefork, solo


def refuse_other_pools(sender: Any, **_: Any) -> None:
    """End a starting worker, with one line, unless its pool gives each task a process of its own.

    A process has one connection to each server, and two tasks must not use it at once. Threads and event loops would.
    """
    pool = concurrency.get_implementation(sender.pool_cls)
    if not issubclass(pool, prefork.TaskPool | solo.TaskPool):
        sys.stderr.write(
            f"The pool {pool.__module__} runs several tasks in one process, and our tasks need one each:"
            " start the worker with --pool prefork, or with --pool solo.\n"
        )
        raise SystemExit(2)
