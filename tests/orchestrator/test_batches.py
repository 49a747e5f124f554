"""Many tasks: in order, as they come, and what one failure costs the others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, AsyncIterator, Iterator, List, Optional, Sequence, Tuple

import pytest

from claude_force_orchestrator import AsyncAgentOrchestrator, Context, InvalidTaskError, StoppedError, UnknownAgentError
from claude_force_orchestrator._streaming import BULK, stream


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


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("limit", [1, 4, 500])
def test_no_more_is_read_than_the_limit_and_what_is_found_is_handed_on(
    in_order: bool, asynchronous: bool, limit: int
) -> None:
    read = 0
    results: List[int] = []

    def items() -> Iterator[int]:
        nonlocal read
        for item in range(700):
            read += 1
            assert read - len(results) <= limit
            yield item

    async def slowly() -> AsyncIterator[int]:
        for item in items():
            await asyncio.sleep(0)
            yield item

    async def look_up(bulk: Sequence[int]) -> List[Optional[str]]:
        assert len(bulk) <= min(limit, BULK)
        await asyncio.sleep(0)
        return [f"found {item}" if item % 3 else None for item in bulk]

    async def work(item: int, found: Optional[str]) -> Tuple[int, Optional[str]]:
        for _ in range(item % 5):
            await asyncio.sleep(0)
        return item, found

    async def main() -> None:
        source = slowly() if asynchronous else items()
        async for number, (item, found) in stream(source, look_up, work, limit, in_order=in_order):
            assert (number, found) == (item, f"found {item}" if item % 3 else None)
            results.append(item)

    asyncio.run(main())
    assert sorted(results) == list(range(700))
    assert not in_order or results == list(range(700))


def test_what_comes_while_others_are_looked_up_is_looked_up_together() -> None:
    bulks: List[int] = []

    async def slowly() -> AsyncIterator[int]:
        for item in range(200):
            await asyncio.sleep(0)
            yield item

    async def look_up(bulk: Sequence[int]) -> List[Optional[str]]:
        bulks.append(len(bulk))
        for _ in range(50):
            await asyncio.sleep(0)
        return [None] * len(bulk)

    async def work(item: int, found: Optional[str]) -> int:
        return item

    async def main() -> List[int]:
        return [item async for _, item in stream(slowly(), look_up, work, 200, in_order=True)]

    assert asyncio.run(main()) == list(range(200))
    assert sum(bulks) == 200
    assert len(bulks) < 40


@pytest.mark.parametrize("setting", [True, False])
def test_a_deadline_counts_the_look_up_of_a_batch(run: Any, api: Any, setting: bool, monkeypatch: Any) -> None:
    deadline = {"deadline_seconds": 30.0}

    async def ask(it: AsyncAgentOrchestrator) -> None:
        assert it.cache is not None
        looked: List[object] = []
        # Before the tasks begin, and none of them counts it.
        monkeypatch.setattr(it.cache, "get_entries", lambda keys, **_: looked.append(keys))
        results = await it.execute_multiple([("code-reviewer", "x")] * 3, **({} if setting else deadline))
        assert all(result.success for result in results)
        assert not looked

    run(ask, **(deadline if setting else {}))


def test_results_of_a_stream_come_in_the_order_of_the_tasks(run: Any, api: Any) -> None:
    api.to = {"task 0": api.reply(api.message("late"), delay=0.3), "task 3": api.reply(status=400)}

    async def ask(it: AsyncAgentOrchestrator) -> List[Tuple[bool, str]]:
        api.answers = lambda body: None if body["messages"][0]["content"] in api.to else body["messages"][0]["content"]
        tasks = [("code-reviewer", f"task {number}") for number in range(6)]
        return [(result.success, result.output) async for result in it.stream_many([*tasks, "no pair", tasks[1]])]

    found = run(ask)
    outputs = ["late", "task 1", "task 2", "", "task 4", "task 5", "", "task 1"]
    assert found == [(bool(output), output) for output in outputs]


def test_what_a_stream_finds_in_the_cache_is_read_together(run: Any, api: Any) -> None:
    tasks = [("code-reviewer", f"task {number}") for number in range(400)]

    async def ask(it: AsyncAgentOrchestrator) -> None:
        asked = [result async for result in it.stream_many(tasks[::2])]
        assert it.cache is not None
        before, reads = it.cache.stats(), 0
        backend = it.cache._backend
        plain = backend.get_many

        async def counting(keys: Any) -> Any:
            nonlocal reads
            reads += 1
            return await plain(keys)

        backend.get_many = counting  # type: ignore[method-assign]  # to count
        results = [result async for result in it.stream_many(tasks[::2], in_flight=400, cache="only-if-cached")]
        assert reads == 4  # two bulks, each of entries and then of the epochs of their tags
        assert [result.output for result in results] == [result.output for result in asked]
        assert all(result.metadata.cached and result.metadata.cache_age_seconds is not None for result in results)
        results = [result async for result in it.stream_many(tasks[:10], in_flight=10)]
        assert [result.metadata.cached for result in results] == [True, False] * 5
        after = it.cache.stats()
        assert (after.hits - before.hits, after.misses - before.misses) == (205, 5)

    run(ask, cache="memory://?tier_bytes=0", max_concurrent=50)
    assert len(api.requests) == 205


def test_bulk_look_ups_leave_to_an_execution_what_only_it_can_decide(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        async def answers(**options: Any) -> List[bool]:
            tasks = [("code-reviewer", "x")]
            return [result.metadata.cached async for result in it.stream_many(tasks, **options)]

        assert await answers() == [False]
        assert await answers() == [True]
        assert await answers(max_age_hours=0) == [False]
        assert await answers(max_age_hours=1) == [True]
        assert await answers(cache="no-cache") == [False]
        assert await answers(cache="no-store") == [False]
        assert await answers(max_tokens=5) == [False]
        assert await answers(variants=2, cache="only-if-cached") == [True]
        assert await answers(context=[Context("note", "a file", "data")]) == [False]
        assert await answers(refresh_ahead=1) == [True]
        await api.arrived(6)

    run(ask)


def test_after_a_stop_what_is_under_way_is_finished_and_nothing_else_is_begun(run: Any, api: Any) -> None:
    api.default.gate = gate = threading.Event()
    api.to = {"known": api.reply(), "refused": api.reply(status=429, headers={"retry-after": "200"})}

    async def ask(it: AsyncAgentOrchestrator) -> None:
        assert (await it.execute_agent("code-reviewer", "known")).success
        refused = asyncio.ensure_future(it.execute_agent("doc_writer", "refused", model="claude-sonnet-5"))
        await api.arrived(2)  # before the others take all places
        tasks = [("code-reviewer", str(number)) for number in range(20)]
        batch = asyncio.ensure_future(it.execute_multiple(tasks))
        await api.arrived(5)
        for _ in range(3000):
            if it.limits["claude-sonnet"].paused_until:
                break
            await asyncio.sleep(0.01)
        await asyncio.get_running_loop().run_in_executor(None, it.stop)  # from any thread
        gate.set()
        assert isinstance((await refused).error, StoppedError)
        assert (await it.execute_agent("code-reviewer", "known")).metadata.cached
        assert isinstance((await it.execute_agent("code-reviewer", "new")).error, StoppedError)
        results = await batch
        assert sum(result.success for result in results) == 3
        assert all(result.success or isinstance(result.error, StoppedError) for result in results)
        assert len(api.requests) == 5
        assert (it.totals.tasks, it.totals.failures, it.totals.calls) == (5, 0, 5)
        await it.close()
        assert (await it.execute_agent("code-reviewer", "after it was closed")).success

    run(ask, max_concurrent=3)
