"""Families of models: limits that adapt, pauses, and the pace of the quota."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import hookimpl
from claude_force_orchestrator import AsyncAgentOrchestrator, RateLimitError, model_family
from claude_force_orchestrator._families import COOL_DOWN, Family
from claude_force_orchestrator._pace import Pace, Start


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _quota(limit: int, remaining: int, kind: str = "requests") -> Dict[str, str]:
    return {
        f"anthropic-ratelimit-{kind}-limit": str(limit),
        f"anthropic-ratelimit-{kind}-remaining": str(remaining),
    }


def _family(most: int, clock: Clock) -> Tuple[Family, List[Tuple[int, str]]]:
    events: List[Tuple[int, str]] = []

    def emit(event: str, **arguments: Any) -> None:
        if event == "limit":
            events.append((arguments["limit"], arguments["reason"]))

    return Family("claude-test", most, emit, clock=clock, jitter=lambda: 0.0), events


async def _until(holds: Callable[[], object]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def _start(family: Family) -> Start:
    start = await family.admit(patience=0.0)
    assert start is not None
    return start


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("claude-haiku-5-5", "claude-haiku"),
        ("claude-haiku-4-5-20251001", "claude-haiku"),
        ("claude-3-7-sonnet-latest", "claude-sonnet"),
        ("claude-sonnet-4-6", "claude-sonnet"),
        ("Claude-Opus-5", "claude-opus"),
        ("20251001", "20251001"),
    ],
)
def test_the_family_of_a_model_is_its_id_without_numbers(model: str, family: str) -> None:
    assert model_family(model) == family


def test_a_limit_doubles_with_each_round_until_the_first_rate_limit_and_then_grows_by_one() -> None:
    clock = Clock()
    family, _ = _family(100, clock)

    async def main() -> None:
        calls = [asyncio.ensure_future(family.slots.acquire()) for _ in range(500)]
        await asyncio.sleep(0)

        async def round_of_answers() -> int:
            for _ in range(family.slots.limit):
                family.answered(await _start(family), {})
            return family.slots.limit

        assert [await round_of_answers() for _ in range(4)] == [40, 80, 100, 100]
        family.refused(await _start(family), {}, None)
        assert [await round_of_answers() for _ in range(2)] == [80, 80]
        for _ in range(100 - 80):
            family.slots.release()
        clock.now += COOL_DOWN
        assert [await round_of_answers() for _ in range(3)] == [80, 81, 82]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(main())


def test_a_limit_does_not_grow_while_nobody_needs_more() -> None:
    family, events = _family(100, Clock())

    async def main() -> None:
        for _ in range(100):
            await family.slots.acquire()
            family.answered(await _start(family), {})
            family.slots.release()

    asyncio.run(main())
    assert (family.slots.limit, events) == (20, [])


def test_an_episode_of_rate_limits_cuts_the_limit_once() -> None:
    clock = Clock()
    family, events = _family(100, clock)

    async def main() -> None:
        starts = [await _start(family) for _ in range(10)]
        for start in starts:
            clock.now += 0.1
            family.refused(start, {}, None)
        assert family.slots.limit == 16
        clock.now += COOL_DOWN
        family.refused(await _start(family), {}, None)
        assert family.slots.limit == 12

    asyncio.run(main())
    assert events == [(16, "rate limit"), (12, "rate limit")]


@pytest.mark.parametrize(("headers", "least"), [(_quota(60, 0), 10), (_quota(60, 50), 1), ({}, 1)])
def test_a_limit_is_not_cut_far_by_a_quota_that_the_pace_takes_care_of(headers: Dict[str, str], least: int) -> None:
    clock = Clock()
    family, _ = _family(100, clock)

    async def main() -> None:
        for _ in range(60):
            clock.now += 2 * COOL_DOWN
            family.refused(await _start(family), headers, None)

    asyncio.run(main())
    assert family.slots.limit == least


def test_nothing_starts_while_the_api_asks_to_wait() -> None:
    clock = Clock()
    family, _ = _family(10, clock)

    async def main() -> None:
        family.refused(await _start(family), {}, 30.0)
        assert family.pause == 30.0
        assert await family.admit(patience=29.0) is None
        clock.now += 30.0
        await _start(family)

    asyncio.run(main())


def test_refusals_after_one_pause_after_another_spread_wider() -> None:
    clock = Clock()
    events: List[float] = []
    family = Family(
        "x", 10, lambda name, **given: events.append(given.get("seconds", 0.0)), clock=clock, jitter=lambda: 0.5
    )

    async def main() -> List[float]:
        pauses = []
        for _ in range(7):
            family.refused(await _start(family), {}, 1.0)
            pauses.append(family.pause)
            clock.now += family.pause
        family.answered(await _start(family), {})
        family.refused(await _start(family), {}, 1.0)
        return [*pauses, family.pause]

    assert asyncio.run(main()) == [1.25, 1.5, 2.0, 3.0, 5.0, 5.0, 5.0, 1.25]


def test_a_fault_of_the_server_only_stops_the_growth() -> None:
    clock = Clock()
    family, events = _family(100, clock)

    async def crowd() -> None:
        for _ in range(20):
            await family.slots.acquire()
        family.faulted()
        family.answered(await _start(family), {})
        assert (family.slots.limit, events) == (20, [])
        clock.now += COOL_DOWN
        family.answered(await _start(family), {})
        assert (family.slots.limit, events) == (21, [(21, "growth")])

    asyncio.run(crowd())


@given(
    limit=st.integers(1, 1000),
    gaps=st.lists(st.floats(0, 5), max_size=60),
    latency=st.floats(0, 3),
)
def test_who_keeps_the_pace_is_never_refused(limit: int, gaps: List[float], latency: float) -> None:
    """Against a bucket that refills continuously, a client that knows one reply keeps within it."""
    pace, level, updated = Pace(), float(limit), 0.0
    now = 0.0
    replies: List[Tuple[float, Start, Dict[str, str]]] = []

    def serve(start: Start) -> None:
        nonlocal level, updated
        level = min(limit, level + (now - updated) * limit / 60)
        updated = now
        assert level >= 1 - 1e-6
        level -= 1
        replies.append((now + latency, start, _quota(limit, int(level + 1e-9))))

    serve(pace.start(now))
    arrived = replies.pop()
    now = arrived[0]
    pace.learn(arrived[1], arrived[2], now)
    for gap in gaps:
        now += gap
        for at, start, headers in [reply for reply in replies if reply[0] <= now]:
            pace.learn(start, headers, now)
            replies.remove((at, start, headers))
        if pace.delay(now) == 0:
            serve(pace.start(now))


def test_the_pace_learns_what_a_request_costs_in_tokens() -> None:
    pace = Pace()
    first = pace.start(0.0)
    pace.learn(first, _quota(6000, 5000, "tokens"), 0.0)
    second = pace.start(0.0)
    pace.learn(second, _quota(6000, 4000, "tokens"), 0.0)
    for _ in range(4):
        assert pace.delay(0.0) == 0
        pace.start(0.0)
    assert pace.delay(0.0) == pytest.approx(10)


@given(st.text() | st.integers().map(str) | st.floats().map(str), st.text() | st.integers().map(str))
def test_headers_that_make_no_sense_are_passed_over(limit: str, remaining: str) -> None:
    pace = Pace()
    start = pace.start(0.0)
    pace.learn(
        start, {"anthropic-ratelimit-tokens-limit": limit, "anthropic-ratelimit-tokens-remaining": remaining}, 0.0
    )
    assert pace.delay(0.0) >= 0


class Listener:
    def __init__(self) -> None:
        self.limits: List[Tuple[str, int, str]] = []
        self.pauses: List[Tuple[str, float]] = []

    @hookimpl
    def claude_force_orchestrator_limit(self, family: str, limit: int, reason: str) -> None:
        self.limits.append((family, limit, reason))

    @hookimpl
    def claude_force_orchestrator_pause(self, family: str, seconds: float) -> None:
        self.pauses.append((family, seconds))


def test_limits_can_be_seen_and_heard(make: Any, run: Any, api: Any) -> None:
    listener = Listener()
    orchestrator = make(max_concurrent=20)
    orchestrator.register(listener)
    api.says(api.reply(status=429, headers={"retry-after": "1"}))

    async def ask(it: AsyncAgentOrchestrator) -> None:
        assert it.limits == {}
        task = asyncio.ensure_future(it.execute_agent("code-reviewer", "x"))
        await _until(lambda: listener.pauses)
        other = asyncio.ensure_future(it.execute_agent("code-reviewer", "y"))
        await _until(lambda: it.limits["claude-haiku"].waiting == 2)
        state = it.limits["claude-haiku"]
        assert (state.limit, state.in_flight) == (16, 0)
        assert state.paused_until is not None
        assert (await task).success
        assert (await other).success
        state = it.limits["claude-haiku"]
        assert (state.in_flight, state.waiting, state.paused_until) == (0, 0, None)

    run(ask, orchestrator)
    assert listener.limits == [("claude-haiku", 16, "rate limit")]
    assert 1.0 <= listener.pauses[0][1] <= 1.5
    times = [request["time"] for request in api.requests]
    assert min(times[1:]) - times[0] >= 1.0
    orchestrator.unregister(listener)


def test_a_pause_of_one_family_holds_up_no_other(run: Any, api: Any) -> None:
    api.to["x"] = api.reply(status=429, headers={"retry-after": "3"})

    async def ask(it: AsyncAgentOrchestrator) -> None:
        paused = asyncio.ensure_future(it.execute_agent("code-reviewer", "x", max_tokens=1))
        await api.arrived()
        await _until(lambda: it.limits["claude-haiku"].paused_until)
        waiting = [asyncio.ensure_future(it.execute_agent("code-reviewer", f"x{n}")) for n in range(5)]
        assert (await it.execute_agent("code-reviewer", "y", model="claude-opus-5")).success
        assert len(api.requests) == 2
        for task in (paused, *waiting):
            task.cancel()
        await asyncio.gather(paused, *waiting, return_exceptions=True)
        assert it.limits["claude-haiku"].waiting == it.limits["claude-haiku"].in_flight == 0

    run(ask, max_concurrent=2)


def test_calls_that_were_refused_hold_up_no_other_family_while_they_wait(run: Any, api: Any) -> None:
    for number in range(2):
        api.to[f"x{number}"] = api.reply(status=429, headers={"retry-after": "30"})

    async def ask(it: AsyncAgentOrchestrator) -> None:
        refused = [asyncio.ensure_future(it.execute_agent("code-reviewer", f"x{n}")) for n in range(2)]
        await api.arrived(2)
        assert (await asyncio.wait_for(it.execute_agent("code-reviewer", "y", model="claude-opus-5"), 10)).success
        assert len(api.requests) == 3
        for task in refused:
            task.cancel()
        await asyncio.gather(*refused, return_exceptions=True)
        assert it.limits["claude-haiku"].waiting == it.limits["claude-haiku"].in_flight == 0

    run(ask, max_concurrent=2)


def test_a_pause_beyond_reason_fails_those_who_come_next_without_asking(run: Any, api: Any) -> None:
    api.says(api.reply(status=429, headers={"retry-after": "86400"}))

    async def ask(it: AsyncAgentOrchestrator) -> Optional[Exception]:
        await it.execute_agent("code-reviewer", "x")
        return (await it.execute_agent("code-reviewer", "y")).error

    error = run(ask)
    assert isinstance(error, RateLimitError)
    assert (error.status, error.attempts) == (429, 0)
    assert len(api.requests) == 1


def test_a_batch_keeps_the_pace_that_the_headers_tell(run: Any, api: Any) -> None:
    api.default.headers.update(_quota(120, 0))

    async def ask(it: AsyncAgentOrchestrator) -> None:
        results = await it.execute_multiple([("code-reviewer", str(number)) for number in range(4)])
        assert all(result.success for result in results)

    run(ask, max_concurrent=1)
    times = [request["time"] for request in api.requests]
    assert all(later - earlier >= 0.5 for earlier, later in zip(times, times[1:]))
