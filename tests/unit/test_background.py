import asyncio
from contextlib import suppress

from feeds.background import repeat


def run_steps(outcomes):
    """Repeat a step that raises what `outcomes` holds, until all are used up. Returns how often it ran."""
    ran = []

    async def run():
        async def step():
            ran.append(1)
            if len(ran) > len(outcomes):
                task.cancel()
            elif (error := outcomes[len(ran) - 1]) is not None:
                raise error

        task = asyncio.create_task(repeat("testing", step, pause_s=0))
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)

    asyncio.run(run())
    return len(ran)


def test_a_step_is_repeated_after_an_unexpected_error():
    assert run_steps([None, ValueError(), None, ZeroDivisionError(), None]) == 6


def test_the_first_error_of_each_series_is_logged_with_its_traceback(caplog):
    run_steps([ValueError("a"), ValueError("b"), None, ValueError("c"), ValueError("d")])

    assert [str(record.exc_info[1]) for record in caplog.records] == ["a", "c"]
    assert [record.message for record in caplog.records] == ["testing failed; it is repeated every 0 s"] * 2


def test_a_cancelled_task_ends():
    async def run():
        task = asyncio.create_task(repeat("testing", lambda: asyncio.sleep(0), pause_s=0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        return task.cancelled()

    assert asyncio.run(run())
