"""Deadlines bound an execution from the call to the result; errors are returned or raised."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from claude_force_orchestrator import (
    AsyncAgentOrchestrator,
    BadRequestError,
    ConfigError,
    DeadlineExceededError,
    InvalidTaskError,
    RefusedError,
    ServerError,
    UnknownAgentError,
)


def test_a_deadline_bounds_a_call_that_does_not_end(run: Any, api: Any) -> None:
    api.default.gate = threading.Event()

    async def ask(it: AsyncAgentOrchestrator) -> None:
        result = await it.execute_agent("code-reviewer", "x", deadline_seconds=0.2)
        assert isinstance(result.error, DeadlineExceededError)
        assert isinstance(result.error, TimeoutError)
        assert result.errors == ("no result within 0.2 s, waiting and retries included; raise deadline_seconds",)
        assert (it.totals.tasks, it.totals.failures) == (1, 1)
        api.default.gate.set()

    run(ask)


def test_a_deadline_bounds_the_queue_pauses_and_attempts(run: Any, api: Any) -> None:
    gate = api.default.gate = threading.Event()

    async def ask(it: AsyncAgentOrchestrator) -> None:
        first = asyncio.ensure_future(it.execute_agent("code-reviewer", "x", deadline_seconds=60))
        await api.arrived()
        queued = await it.execute_agent("code-reviewer", "y")
        assert isinstance(queued.error, DeadlineExceededError)
        gate.set()
        assert (await first).success
        api.says(api.reply(status=429, headers={"retry-after": "60"}))
        paused = await it.execute_agent("code-reviewer", "z")
        assert isinstance(paused.error, DeadlineExceededError)
        assert len(api.requests) == 2

    run(ask, max_concurrent=1, deadline_seconds=0.5)


def test_who_runs_out_of_time_leaves_a_shared_call_alone(run: Any, api: Any) -> None:
    gate = api.default.gate = threading.Event()

    async def ask(it: AsyncAgentOrchestrator) -> None:
        hasty = asyncio.ensure_future(it.execute_agent("code-reviewer", "x", deadline_seconds=0.3))
        await api.arrived()
        patient = [asyncio.ensure_future(it.execute_agent("code-reviewer", "x")) for _ in range(3)]
        assert isinstance((await hasty).error, DeadlineExceededError)
        gate.set()
        assert all(result.success for result in await asyncio.gather(*patient))
        assert len(api.requests) == 1

    run(ask)


def test_a_batch_loses_only_what_came_too_late(run: Any, api: Any) -> None:
    gate = threading.Event()
    api.to["slow"] = api.reply(gate=gate)

    async def ask(it: AsyncAgentOrchestrator) -> None:
        tasks = [("code-reviewer", "quick"), ("code-reviewer", "slow")]
        quick, slow = await it.execute_multiple(tasks, deadline_seconds=2)
        assert quick.success
        assert isinstance(slow.error, DeadlineExceededError)
        late = {number: result async for number, result in it.execute_as_completed(tasks, deadline_seconds=0.2)}
        assert (late[0].success, late[1].success) == (True, False)
        gate.set()

    run(ask)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1", True])
def test_a_deadline_that_is_none_is_refused(make: Any, run: Any, seconds: Any) -> None:
    with pytest.raises(ConfigError, match="deadline_seconds"):
        make(deadline_seconds=seconds)

    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return await it.execute_agent("code-reviewer", "x", deadline_seconds=seconds)

    assert isinstance(run(ask).error, InvalidTaskError)


def test_errors_are_raised_on_demand_and_recorded_all_the_same(make: Any, run: Any, api: Any, config: Path) -> None:
    api.says(
        400, api.reply(api.message("no", "refusal")), api.reply(status=500, headers={"x-should-retry": "false"}), "fine"
    )
    api.default = api.reply(status=400)

    async def ask(it: AsyncAgentOrchestrator) -> None:
        with pytest.raises(BadRequestError) as caught:
            await it.execute_agent("code-reviewer", "a")
        assert type(caught.value.__cause__).__module__.startswith("anthropic")
        for task, error in (("b", RefusedError), ("c", ServerError)):
            with pytest.raises(error):
                await it.execute_agent("code-reviewer", task)
        with pytest.raises(UnknownAgentError):
            await it.execute_agent("nobody", "d")
        assert (await it.execute_agent("code-reviewer", "e")).output == "fine"
        results = await it.execute_multiple([("code-reviewer", "e"), ("code-reviewer", "f")])
        assert [result.success for result in results] == [True, False]
        async for number, result in it.execute_as_completed([("nobody", "g")]):
            assert (number, result.success) == (0, False)
        assert (it.totals.tasks, it.totals.failures) == (8, 6)

    run(ask, make(raise_errors=True, enable_tracking=True))
    with closing(sqlite3.connect(str(config.parent / "metrics" / "executions.db"))) as file:
        counts = dict(file.execute("SELECT outcome, count(*) FROM executions GROUP BY outcome").fetchall())
    assert counts == {"failure": 6, "hit": 1, "miss": 1}
