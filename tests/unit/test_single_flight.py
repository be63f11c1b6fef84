import asyncio

import pytest

from feeds.single_flight import SingleFlight


def test_callers_that_arrive_before_a_call_begins_share_it():
    async def run():
        single_flight, calls = SingleFlight(), []

        async def call():
            calls.append(len(calls))
            await asyncio.sleep(0)
            return calls[-1]

        return await asyncio.gather(*(single_flight.run("key", call) for _ in range(1000))), calls

    answers, calls = asyncio.run(run())
    assert (answers, calls) == ([0] * 1000, [0])


def test_callers_that_arrive_during_a_call_share_the_next_one():
    async def run():
        single_flight, under_way, release, calls = SingleFlight(), asyncio.Event(), asyncio.Event(), []

        async def call():
            calls.append(len(calls))
            answer = calls[-1]
            under_way.set()
            await release.wait()
            return answer

        first = asyncio.create_task(single_flight.run("key", call))
        await under_way.wait()
        later = [asyncio.create_task(single_flight.run("key", call)) for _ in range(1000)]
        await asyncio.sleep(0)
        begun_beside_the_first = len(calls) - 1
        release.set()
        return await first, await asyncio.gather(*later), begun_beside_the_first

    assert asyncio.run(run()) == (0, [1] * 1000, 0)


def test_keys_do_not_wait_for_each_other():
    async def run():
        single_flight, never = SingleFlight(), asyncio.Event()

        async def call():
            return "b"

        hanging = asyncio.create_task(single_flight.run("a", never.wait))
        answer = await asyncio.wait_for(single_flight.run("b", call), 5)
        never.set()
        await hanging
        return answer

    assert asyncio.run(run()) == "b"


def test_an_error_reaches_all_callers_of_the_call_and_the_next_caller_makes_a_new_call():
    async def run():
        single_flight, calls = SingleFlight(), []

        async def call():
            calls.append(1)
            if len(calls) == 1:
                raise LookupError
            return "answer"

        errors = await asyncio.gather(*(single_flight.run("key", call) for _ in range(3)), return_exceptions=True)
        return [type(error) for error in errors], await single_flight.run("key", call)

    assert asyncio.run(run()) == ([LookupError] * 3, "answer")


def test_a_cancelled_caller_does_not_cancel_the_call_of_the_others():
    async def run():
        single_flight, release = SingleFlight(), asyncio.Event()
        callers = [asyncio.create_task(single_flight.run("key", release.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        callers[0].cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await callers[0]
        return await asyncio.gather(*callers[1:])

    assert asyncio.run(run()) == [True, True]
