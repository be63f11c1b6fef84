"""Which pools does a worker refuse?"""

from types import SimpleNamespace

import pytest
from celery.concurrency.base import BasePool

from worker.broker.pool import refuse_other_pools


class TaskPool(BasePool):
    """A pool with an event loop, as those of gevent and eventlet."""


@pytest.mark.parametrize("pool", ["prefork", "processes", "solo"])
def test_a_pool_with_a_process_for_each_task_is_taken(pool):
    refuse_other_pools(SimpleNamespace(pool_cls=pool))


@pytest.mark.parametrize("pool", ["threads", TaskPool])
def test_another_pool_is_refused_in_one_line_with_exit_code_2(pool, capsys):
    with pytest.raises(SystemExit) as ended:
        refuse_other_pools(SimpleNamespace(pool_cls=pool))

    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
