"""Many tasks: in order, as they come, and what one failure costs the others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, AsyncIterator, Iterator, List, Tuple

import pytest

from claude_force_orchestrator import AsyncAgentOrchestrator, InvalidTaskError, UnknownAgentError
from claude_force_orchestrator._streaming import as_completed


def test_results_come_in_the_order_of_the_tasks_and_one_bad_task_is_one_failure(run: Any, api: Any) -> None:
    api.to = {"refused by the API": api.reply(status=400), "slow": api.reply(api.message("late"), delay=0.2)}
    tasks: List[Any] = [
        ("code-reviewer", "refused by the API"),
        ("code-reviewer", "slow"),
        ("nobody", "x"),
        ("code-reviewer", ""),
        ("code-reviewer", "a\udfff"),
        ("code-reviewer",),
        "code-reviewer",
        None,
        ["doc_writer", "a list will do"],
        ("code-reviewer", "quick"),
    ]

    async def ask(it: AsyncAgentOrchestrator) -> Any:
        results = await it.execute_multiple(tasks)
        assert it.totals.tasks == len(tasks)
        return results

    results = run(ask)
    assert [result.success for result in results] == [False, True, *[False] * 6, True, True]
    assert results[1].output == "late"
    assert isinstance(results[2].error, UnknownAgentError)
    for result in results[3:8]:
        assert isinstance(result.error, InvalidTaskError)
    assert all(len(result.errors) == (not result.success) for result in results)


def test_an_empty_batch_has_no_results(run: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return await it.execute_multiple([]), [item async for item in it.execute_as_completed([])]

    assert run(ask) == ([], [])


def test_repeats_within_a_batch_are_one_call(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return await it.execute_multiple([("code-reviewer", "same")] * 10)

    assert sum(result.metadata.cached for result in run(ask)) == 9
    assert len(api.requests) == 1


def test_cancelling_a_batch_cancels_its_tasks(run: Any, api: Any) -> None:
    api.default.gate = gate = threading.Event()

    async def ask(it: AsyncAgentOrchestrator) -> None:
        before = asyncio.all_tasks()
        batch = asyncio.ensure_future(it.execute_multiple([("code-reviewer", str(n)) for n in range(5)]))
        await api.arrived(5)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() - before if not task.done()]
        assert not left, left

    run(ask)
    gate.set()


def test_results_are_yielded_as_they_come_each_with_its_number(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        api.says(api.reply(api.message("slow"), delay=0.3))
        slow = asyncio.ensure_future(it.execute_agent("code-reviewer", "0"))
        await api.arrived()
        tasks = (("code-reviewer", str(n)) for n in range(3))
        found = [(index, result.output) async for index, result in it.execute_as_completed(tasks)]
        await slow
        return found

    found = run(ask)
    assert found[-1] == (0, "slow")
    assert sorted(index for index, _ in found) == [0, 1, 2]


def test_an_endless_source_is_read_no_further_than_the_limit(run: Any, api: Any) -> None:
    read = 0

    def endless() -> Iterator[Tuple[str, str]]:
        nonlocal read
        while True:
            read += 1
            yield "code-reviewer", f"task {read % 7}"

    async def ask(it: AsyncAgentOrchestrator) -> None:
        stream = it.execute_as_completed(endless())
        seen = 0
        async for _ in stream:
            seen += 1
            assert read - seen <= 8
            if seen == 200:
                break
        await stream.aclose()

    run(ask, max_concurrent=2)


def test_a_slow_asynchronous_source_holds_up_no_result(run: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        more = asyncio.Event()

        async def source() -> AsyncIterator[Tuple[str, str]]:
            yield "code-reviewer", "one"
            await more.wait()
            yield "code-reviewer", "two"

        indices = []
        async for index, result in it.execute_as_completed(source()):
            assert result.success
            indices.append(index)
            more.set()
        assert indices == [0, 1]

    run(ask)


def test_leaving_a_stream_early_cancels_what_is_under_way(run: Any, api: Any) -> None:
    gate = threading.Event()
    api.says("first")
    api.default.gate = gate

    async def ask(it: AsyncAgentOrchestrator) -> None:
        stream = it.execute_as_completed((("code-reviewer", str(n)) for n in range(50)), in_flight=5)
        async for _ in stream:
            break
        await stream.aclose()
        gate.set()
        assert it.totals.tasks == 1

    run(ask)


def test_a_source_that_fails_ends_the_stream_with_its_error(run: Any, api: Any) -> None:
    async def broken() -> AsyncIterator[Tuple[str, str]]:
        yield "code-reviewer", "x"
        raise OSError("the file is gone")

    async def ask(it: AsyncAgentOrchestrator) -> None:
        with pytest.raises(OSError, match="the file is gone"):
            async for _ in it.execute_as_completed(broken()):
                pass

    run(ask)


def test_as_completed_never_works_on_more_than_the_limit() -> None:
    async def main() -> None:
        current = most = 0

        async def work(number: int, item: int) -> int:
            nonlocal current, most
            assert number == item
            current += 1
            most = max(most, current)
            for _ in range(5 + item % 5):
                await asyncio.sleep(0)
            current -= 1
            return item

        for limit in (1, 4):
            most = 0
            found = [item async for item in as_completed(range(100), work, limit)]
            assert sorted(found) == list(range(100))
            assert most == limit

    asyncio.run(main())
