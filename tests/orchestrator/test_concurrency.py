"""One limit of concurrency, on every path, in every event loop and thread; and what does not count for it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, List

import pytest

from claude_force_orchestrator import AsyncAgentOrchestrator
from claude_force_orchestrator._limiter import ConcurrencyLimiter


async def _turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class _Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._loop.call_soon(self._next)


def test_the_limit_holds_for_single_executions(run: Any, api: Any) -> None:
    api.default.delay = 0.05

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await asyncio.gather(*[it.execute_agent("code-reviewer", f"x{index}") for index in range(12)])

    run(ask, max_concurrent=3)
    assert (len(api.requests), api.most) == (12, 3)


def test_the_limit_holds_over_event_loops_in_several_threads(make: Any, api: Any) -> None:
    api.default.delay = 0.05
    orchestrator = make(max_concurrent=2)
    assert orchestrator.cache is not None

    def ask(thread: int) -> None:
        async def main() -> None:
            results = await orchestrator.execute_multiple(
                [("code-reviewer", f"x{thread}-{index}") for index in range(4)]
            )
            assert all(result.success for result in results)

        asyncio.run(main())

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(ask, range(3)))
    asyncio.run(orchestrator.close())
    assert len(api.requests) == 12
    assert api.most <= 2


def _ask(it: AsyncAgentOrchestrator, *tasks: str) -> Any:
    return asyncio.gather(*[it.execute_agent("code-reviewer", task) for task in tasks])


def test_one_call_after_another_needs_one_connection(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        for number in range(12):
            await it.execute_agent("code-reviewer", f"x{number}")

    run(ask)
    assert len({request["connection"] for request in api.requests}) == 1


def test_a_second_crowd_finds_the_connections_of_the_first(run: Any, api: Any) -> None:
    crowd = 18

    async def ask(it: AsyncAgentOrchestrator) -> None:
        for turn in range(3):
            api.default.gate = threading.Event()
            calls = asyncio.ensure_future(_ask(it, *[f"{turn}-{number}" for number in range(crowd)]))
            await api.arrived(crowd * (turn + 1))
            api.default.gate.set()
            assert all(result.success for result in await calls)

    run(ask, max_concurrent=crowd)
    assert api.most == crowd
    assert len({request["connection"] for request in api.requests}) == crowd
    sent = [{**request["headers"], "content-length": "any"} for request in api.requests]
    assert all(headers == sent[0] for headers in sent)


def test_calls_that_may_begin_together_begin_in_turns_of_their_own(run: Any, api: Any, monkeypatch: Any) -> None:
    begun: List[int] = []

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "the client is made by the first one")
        turns = _Turns()
        monkeypatch.setattr(it._caller, "_on_attempt", lambda: begun.append(turns.count))
        await _ask(it, *[f"x{number}" for number in range(20)])

    run(ask, max_concurrent=20)
    assert len(set(begun)) == len(begun) == 20


def test_who_gives_up_at_the_door_holds_up_nobody(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        for turn in range(8):
            calls = [asyncio.ensure_future(it.execute_agent("code-reviewer", f"{turn}-{n}")) for n in range(6)]
            await _turns(turn)
            for given_up in calls[::2]:
                given_up.cancel()
            kept = await asyncio.wait_for(asyncio.gather(*calls[1::2]), 30)
            assert all(result.success for result in kept)
        assert (await asyncio.wait_for(it.execute_agent("code-reviewer", "last"), 30)).success
        assert (it._families._door.in_use, it._families._door.waiting) == (0, 0)

    run(ask, max_concurrent=6)


def test_nothing_is_sent_into_a_pause_that_began_while_it_waited_for_its_turn(
    run: Any, api: Any, monkeypatch: Any
) -> None:
    api.says("the client is made by the first one")
    api.default = api.reply(status=429, headers={"retry-after": "30"})
    paused: List[bool] = []

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "first")

        def sent() -> None:
            paused.append(any(family.pause > 0 for family in it._families._families.values()))

        monkeypatch.setattr(it._caller, "_on_attempt", sent)
        await asyncio.wait([asyncio.ensure_future(_ask(it, *[f"x{n}" for n in range(20)]))], timeout=3)
        it.stop()

    run(ask, max_concurrent=20)
    assert paused
    assert not any(paused)


@pytest.mark.parametrize("turn", range(14))
def test_nothing_begins_after_a_stop(run: Any, api: Any, monkeypatch: Any, turn: int) -> None:
    late: List[bool] = []

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "the client is made by the first one")
        monkeypatch.setattr(it._caller, "_on_attempt", lambda: late.append(it._caller._stopped))
        calls = asyncio.ensure_future(_ask(it, *[f"x{number}" for number in range(5)]))
        await _turns(turn)
        it._caller.stop()
        await asyncio.wait_for(asyncio.gather(calls, return_exceptions=True), 30)

    run(ask, max_concurrent=5)
    assert not any(late)


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_a_batch_leaves_turns_to_others(run: Any, api: Any, known: bool, monkeypatch: Any) -> None:
    tasks = [("code-reviewer", f"x{number}") for number in range(300)]
    looked: List[int] = []

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_multiple(tasks if known else tasks[:1])
        turns, get = _Turns(), it._templates.get

        async def counted(*arguments: Any) -> Any:
            looked.append(turns.count)
            return await get(*arguments)

        monkeypatch.setattr(it._templates, "get", counted)
        done = await it.execute_multiple(tasks)
        assert sum(result.metadata.cached for result in done) == (len(tasks) if known else 1)

    run(ask)
    # Of two bulks, sixteen each that are looked up or were found; and a few that are begun.
    assert max(Counter(looked).values()) < 50


def test_every_connection_goes_through_the_proxy(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", api.url)

    async def ask(it: AsyncAgentOrchestrator) -> None:
        api.default.gate = threading.Event()
        calls = asyncio.ensure_future(_ask(it, *[f"x{number}" for number in range(12)]))
        await api.arrived(12)
        api.default.gate.set()
        assert all(result.success for result in await calls)

    run(ask, max_concurrent=12, base_url="http://nowhere.invalid")
    assert {request["path"] for request in api.requests} == {"http://nowhere.invalid/v1/messages"}


def test_cached_answers_neither_wait_nor_count(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "known")
        gate = threading.Event()
        api.default.gate = gate
        slow = asyncio.ensure_future(it.execute_agent("code-reviewer", "new"))
        waiting = asyncio.ensure_future(it.execute_agent("code-reviewer", "newer"))
        await api.arrived(2)
        assert (await it.execute_agent("code-reviewer", "known")).metadata.cached
        assert not slow.done()
        gate.set()
        assert (await slow).success
        assert (await waiting).success

    run(ask, max_concurrent=1)


def test_a_cached_task_in_a_batch_does_not_queue_behind_calls(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "known")
        gate = threading.Event()
        api.default.gate = gate
        tasks = [("code-reviewer", f"new{index}") for index in range(3)] + [("code-reviewer", "known")]
        order: List[int] = []
        async for index, _ in it.execute_as_completed(tasks):
            order.append(index)
            gate.set()
        assert order[0] == 3

    run(ask, max_concurrent=1)


def test_the_slot_of_a_cancelled_task_is_free_again(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        gate = threading.Event()
        api.default.gate = gate
        running = asyncio.ensure_future(it.execute_agent("code-reviewer", "one"))
        await api.arrived()
        waiting = asyncio.ensure_future(it.execute_agent("code-reviewer", "two"))
        await _turns()
        for task in (waiting, running):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.set()
        assert (await it.execute_agent("code-reviewer", "three")).success

    run(ask, max_concurrent=1)


def test_slots_are_given_first_come_first_served() -> None:
    async def main() -> List[int]:
        limiter = ConcurrencyLimiter(1)
        order: List[int] = []

        async def work(number: int) -> None:
            await limiter.acquire()
            order.append(number)
            await asyncio.sleep(0)
            limiter.release()

        await asyncio.gather(*map(work, range(20)))
        return order

    assert asyncio.run(main()) == list(range(20))


def test_a_waiter_cancelled_as_it_is_given_a_slot_passes_it_on() -> None:
    async def main() -> None:
        limiter = ConcurrencyLimiter(1)
        await limiter.acquire()
        first, second = [asyncio.ensure_future(limiter.acquire()) for _ in range(2)]
        await _turns()
        limiter.release()  # the slot is the first one's, who has not run since
        first.cancel()
        await asyncio.wait_for(second, 5)
        with pytest.raises(asyncio.CancelledError):
            await first
        limiter.release()
        await asyncio.wait_for(limiter.acquire(), 5)

    asyncio.run(main())


def test_a_waiter_whose_event_loop_is_gone_keeps_no_slot() -> None:
    limiter = ConcurrencyLimiter(1)
    asyncio.run(limiter.acquire())
    loop = asyncio.new_event_loop()
    waiter = loop.create_task(limiter.acquire())
    loop.run_until_complete(_turns())
    loop.close()
    limiter.release()
    asyncio.run(asyncio.wait_for(limiter.acquire(), 5))
    waiter._log_destroy_pending = False  # type: ignore[attr-defined]  # it is pending for good, on purpose


def test_a_waiter_destroyed_with_its_event_loop_gives_its_slot_back() -> None:
    limiter = ConcurrencyLimiter(1)
    asyncio.run(limiter.acquire())
    loop = asyncio.new_event_loop()
    coroutine = limiter.acquire()
    waiter = loop.create_task(coroutine)
    loop.run_until_complete(_turns())
    limiter.release()  # granted, but the loop never runs again
    loop.close()
    waiter._log_destroy_pending = False  # type: ignore[attr-defined]  # it is pending for good, on purpose
    coroutine.close()
    asyncio.run(asyncio.wait_for(limiter.acquire(), 5))


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limiter_holds_under_cancellations_from_many_threads(limit: int) -> None:
    limiter = ConcurrencyLimiter(limit)
    lock = threading.Lock()
    current = most = 0

    async def work() -> None:
        nonlocal current, most
        await limiter.acquire()
        try:
            with lock:
                current += 1
                most = max(most, current)
            await asyncio.sleep(0.0005)
        finally:
            with lock:
                current -= 1
            limiter.release()

    def thread(seed: int) -> None:
        async def main() -> None:
            tasks = [asyncio.ensure_future(work()) for _ in range(60)]
            for index, task in enumerate(tasks):
                if (index * 7 + seed) % 3 == 0:
                    await asyncio.sleep(0)
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(thread, range(4)))
    assert (current, most) == (0, limit)

    async def all_are_free() -> None:
        for _ in range(limit):
            await asyncio.wait_for(limiter.acquire(), 5)

    asyncio.run(all_are_free())
