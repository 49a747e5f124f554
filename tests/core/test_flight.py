import asyncio
from typing import Any, Callable, List, Tuple

import pytest

from claude_force_cache._flight import Flight, SingleFlight


class Work:
    """Work that ends when the test says so, and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.outcome: Callable[[int], Any] = lambda run: f"result {run}"

    async def __call__(self, flight: Flight) -> Any:
        self.runs += 1
        run = self.runs
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        result = self.outcome(run)
        if isinstance(result, BaseException):
            raise result
        return result


async def started(count: int, flights: SingleFlight, work: Work) -> List["asyncio.Task[Tuple[Any, bool]]"]:
    tasks = [asyncio.ensure_future(flights.run("key", work)) for _ in range(count)]
    await turns()
    return tasks


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_thousand_callers_are_one_piece_of_work_with_one_leader() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        tasks = await started(1000, flights, work)
        work.gate.set()
        results = await asyncio.gather(*tasks)
        assert work.runs == 1
        assert {value for value, _ in results} == {"result 1"}
        assert [led for _, led in results].count(True) == 1

    asyncio.run(main())


def test_other_keys_and_later_callers_have_their_own() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        work.gate.set()
        await asyncio.gather(flights.run("a", work), flights.run("b", work))
        await flights.run("a", work)
        assert work.runs == 3

    asyncio.run(main())


@pytest.mark.parametrize("which", [0, 4, 9])
def test_when_one_of_ten_is_cancelled_nine_get_the_answer_of_one_call(which: int) -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        tasks = await started(10, flights, work)
        tasks[which].cancel()
        await turns()
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert work.runs == 1
        assert work.cancelled == 0
        assert isinstance(results.pop(which), asyncio.CancelledError)
        assert {value for value, _ in results} == {"result 1"}

    asyncio.run(main())


def test_when_all_are_cancelled_so_is_the_work_and_a_newcomer_starts_afresh() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        tasks = await started(3, flights, work)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        work.gate.set()
        assert await flights.run("key", work) == ("result 2", True)
        assert work.cancelled == 1

    asyncio.run(main())


def test_cancelled_before_it_began_it_leaves_nothing_behind() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        task = asyncio.ensure_future(flights.run("key", work))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        work.gate.set()
        assert (await flights.run("key", work))[1]

    asyncio.run(main())


def test_committed_work_is_finished_when_nobody_waits() -> None:
    async def main() -> None:
        flights: SingleFlight = SingleFlight()
        done = []
        gate = asyncio.Event()

        async def work(flight: Flight) -> None:
            flight.commit()
            await gate.wait()
            done.append(True)

        task = asyncio.ensure_future(flights.run("key", work))
        await turns()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.set()
        await flights.settle()
        assert done == [True]

    asyncio.run(main())


def test_a_failure_is_the_leaders_and_the_others_try_once_more_together() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        work.outcome = lambda run: ValueError("first") if run == 1 else "second"
        tasks = await started(10, flights, work)
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert work.runs == 2
        assert isinstance(results[0], ValueError)
        assert [value for value, _ in results[1:]] == ["second"] * 9

    asyncio.run(main())


def test_when_the_second_try_fails_too_there_is_no_third() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        work.outcome = lambda run: ValueError(str(run))
        tasks = await started(10, flights, work)
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert work.runs == 2
        assert [str(error) for error in results] == ["1"] + ["2"] * 9

    asyncio.run(main())


def test_work_that_cancels_itself_is_not_taken_for_its_callers_cancellation() -> None:
    async def main() -> None:
        flights, work = SingleFlight(), Work()
        work.outcome = lambda run: asyncio.CancelledError() if run == 1 else "second"
        tasks = await started(3, flights, work)
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [value for value, _ in results[1:]] == ["second"] * 2

    asyncio.run(main())


def test_it_serves_one_event_loop_after_another() -> None:
    flights: SingleFlight = SingleFlight()

    async def abandoned() -> None:
        await started(1, flights, Work())

    async def main() -> Tuple[Any, bool]:
        work = Work()
        work.gate.set()
        return await flights.run("key", work)

    asyncio.run(abandoned())
    assert asyncio.run(main()) == ("result 1", True)
