import asyncio

import pytest

from feeds.single_flight import SingleFlight


def test_all_who_come_before_a_question_begins_share_it():
    async def run():
        single_flight, asked = SingleFlight(), []

        async def ask():
            asked.append(len(asked))
            await asyncio.sleep(0)
            return asked[-1]

        return await asyncio.gather(*(single_flight.run("key", ask) for _ in range(1000))), asked

    answers, asked = asyncio.run(run())
    assert (answers, asked) == ([0] * 1000, [0])


def test_who_comes_while_a_question_is_under_way_shares_the_next_one():
    async def run():
        single_flight, under_way, release, asked = SingleFlight(), asyncio.Event(), asyncio.Event(), []

        async def ask():
            asked.append(len(asked))
            answer = asked[-1]
            under_way.set()
            await release.wait()
            return answer

        first = asyncio.create_task(single_flight.run("key", ask))
        await under_way.wait()
        later = [asyncio.create_task(single_flight.run("key", ask)) for _ in range(1000)]
        await asyncio.sleep(0)
        begun_beside_the_first = len(asked) - 1
        release.set()
        return await first, await asyncio.gather(*later), begun_beside_the_first

    assert asyncio.run(run()) == (0, [1] * 1000, 0)


def test_keys_do_not_wait_for_each_other():
    async def run():
        single_flight, never = SingleFlight(), asyncio.Event()

        async def answer():
            return "b"

        hung = asyncio.create_task(single_flight.run("a", never.wait))
        answered = await asyncio.wait_for(single_flight.run("b", answer), 5)
        never.set()
        await hung
        return answered

    assert asyncio.run(run()) == "b"


def test_an_error_reaches_all_who_share_it_and_the_next_question_is_asked_anew():
    async def run():
        single_flight, asked = SingleFlight(), []

        async def ask():
            asked.append(1)
            if len(asked) == 1:
                raise LookupError
            return "answer"

        failed = await asyncio.gather(*(single_flight.run("key", ask) for _ in range(3)), return_exceptions=True)
        return [type(error) for error in failed], await single_flight.run("key", ask)

    assert asyncio.run(run()) == ([LookupError] * 3, "answer")


def test_one_who_gives_up_takes_nothing_from_the_others():
    async def run():
        single_flight, release = SingleFlight(), asyncio.Event()
        tasks = [asyncio.create_task(single_flight.run("key", release.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        return await asyncio.gather(*tasks[1:])

    assert asyncio.run(run()) == [True, True]
