"""Spending under a budget: what is sent, what is refused, and what failed attempts count for."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, List

import pytest

from claude_force_cache import open_cache
from claude_force_orchestrator import AgentResult, AnswerCodec, Budget, BudgetError, ConfigError
from claude_force_orchestrator._project import Definition
from claude_force_orchestrator._request import Request, RequestTemplate

COST = pytest.approx(0.0002)
MOST = 0.0021
"""Somewhat more than a call of the tests can cost: 4096 tokens of the answer, and a prompt of some 300 bytes."""


def _tasks(count: int) -> List[Any]:
    return [("code-reviewer", f"task {number}") for number in range(count)]


def test_a_batch_stops_before_the_budget_is_exceeded(run: Any, api: Any) -> None:
    async def ask(it: Any) -> Any:
        return await it.execute_multiple(_tasks(20)), it.budget, it.totals

    results, budget, totals = run(ask, max_usd=0.003)
    refused = [result for result in results if not result.success]
    # Each is admitted as long as its worst case is left.
    assert (len(api.requests), len(refused)) == (5, 15)
    assert all(isinstance(result.error, BudgetError) for result in refused)
    assert "$0.003 is not enough" in refused[-1].errors[0]
    assert budget.spent == pytest.approx(totals.usd_spent) == pytest.approx(0.001)
    assert budget.reserved == 0
    assert totals.calls == 5


def test_a_worst_case_that_others_hold_is_waited_for(run: Any, api: Any) -> None:
    results = run(lambda it: it.execute_multiple(_tasks(20)), max_usd=0.0065)
    assert all(result.success for result in results)
    assert api.most <= 3


def test_what_is_refused_in_any_case_does_not_wait_for_its_turn(run: Any, api: Any) -> None:
    async def ask(it: Any) -> Any:
        gate = api.default.gate = threading.Event()
        first = asyncio.ensure_future(it.execute_agent("code-reviewer", "x"))
        await api.arrived(1)
        refused = await asyncio.wait_for(it.execute_agent("code-reviewer", "y", max_tokens=100_000), 20)
        gate.set()
        return await first, refused

    first, refused = run(ask, max_usd=0.01, max_concurrent=1)
    assert first.success
    assert isinstance(refused.error, BudgetError)


def test_hits_are_free_and_never_refused(run: Any, api: Any) -> None:
    async def ask(it: Any) -> Any:
        return [await it.execute_agent("code-reviewer", task) for task in ("x", "x", "y")]

    paid, hit, refused = run(ask, max_usd=MOST)
    assert (paid.success, hit.success, hit.metadata.cached, refused.success) == (True, True, True, False)
    assert len(api.requests) == 1


def test_a_model_without_a_price_is_refused_but_its_stored_answers_are_not(make: Any, api: Any) -> None:
    async def main() -> List[AgentResult]:
        async with open_cache("memory://", codec=AnswerCodec()) as cache:
            async with make(cache=cache) as free:
                await free.execute_agent("code-reviewer", "x", model="a-new-model")
            async with make(cache=cache, max_usd=1.0) as bounded:
                return [await bounded.execute_agent("code-reviewer", task, model="a-new-model") for task in "xy"]

    hit, refused = asyncio.run(main())
    assert hit.metadata.cached
    assert isinstance(refused.error, BudgetError)
    assert "price of 'a-new-model' is not known" in str(refused.error)
    assert "section prices of claude.json" in str(refused.error)
    assert len(api.requests) == 1


def test_an_answer_of_unknown_cost_counts_at_its_most(run: Any, api: Any) -> None:
    api.default = api.reply(api.message(model="a-new-model"))

    async def ask(it: Any) -> float:
        await it.execute_agent("code-reviewer", "x")
        spent: float = it.budget.spent
        return spent

    assert 0.002 < run(ask, max_usd=1.0) < MOST


@pytest.mark.parametrize(
    ("attempt", "counts"),
    [
        ({"status": 500}, False),
        ({"status": 429}, False),
        ({"drop": True}, True),
        ({"body": b"{"}, True),
        ({"delay": 2.0}, True),
    ],
)
def test_what_may_have_been_billed_counts_at_its_most(run: Any, api: Any, attempt: Any, counts: bool) -> None:
    async def ask(it: Any) -> Budget:
        await it.execute_agent("code-reviewer", "x")
        budget: Budget = it.budget
        return budget

    api.says(api.reply(**attempt))
    budget = run(ask, max_usd=1.0, max_retries=0, timeout_seconds=1.0 if "delay" in attempt else 30.0)
    assert (0.002 < budget.spent < MOST) if counts else budget.spent == 0
    assert budget.reserved == 0


def test_what_did_not_reach_the_api_counts_for_nothing(make: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(it: Any) -> Any:
        result = await it.execute_agent("code-reviewer", "x")
        return type(result.error).__name__, it.budget.spent

    unreachable = make(base_url="http://127.0.0.1:1", max_usd=1.0, max_retries=0)
    assert run(ask, unreachable) == ("ConnectionFailedError", 0)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert run(ask, max_usd=1.0)[1] == 0


def test_another_attempt_needs_room_of_its_own(run: Any, api: Any) -> None:
    async def ask(it: Any) -> Any:
        return await it.execute_agent("code-reviewer", "x"), it.budget.spent

    api.says(api.reply(drop=True))
    result, spent = run(ask, max_usd=MOST)
    assert isinstance(result.error, BudgetError)
    assert 0.002 < spent < MOST
    assert len(api.requests) == 1


def test_a_call_that_nobody_waits_for_any_more_counts_at_its_most(run: Any, api: Any) -> None:
    async def ask(it: Any) -> float:
        api.default.gate = threading.Event()
        task = asyncio.ensure_future(it.execute_agent("code-reviewer", "x", cache="no-store"))
        await api.arrived(1)
        assert it.budget.reserved > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        api.default.gate.set()
        assert it.budget.reserved == 0
        spent: float = it.budget.spent
        return spent

    assert 0.002 < run(ask, max_usd=1.0) < MOST


def test_a_stale_answer_is_given_when_the_budget_has_no_room_for_a_new_one(run: Any, api: Any) -> None:
    async def ask(it: Any) -> Any:
        first = await it.execute_agent("code-reviewer", "x")
        again = await it.execute_agent("code-reviewer", "x", max_age_hours=0, stale_while_revalidate_hours=1)
        return first, again

    first, again = run(ask, max_usd=MOST)
    assert first.success
    assert again.success
    assert again.metadata.stale
    assert len(api.requests) == 1


def test_several_orchestrators_can_share_a_budget(make: Any, api: Any) -> None:
    async def main() -> List[bool]:
        budget = Budget(MOST)
        succeeded = []
        for _ in range(2):
            async with make(max_usd=budget) as it:
                assert it.budget is budget
                succeeded.append((await it.execute_agent("code-reviewer", "x")).success)
        return succeeded

    assert asyncio.run(main()) == [True, False]
    assert len(api.requests) == 1


def test_without_a_bound_everything_is_added_up(run: Any) -> None:
    async def ask(it: Any) -> Budget:
        await it.execute_multiple(_tasks(2))
        budget: Budget = it.budget
        return budget

    budget = run(ask)
    assert (budget.max_usd, budget.spent) == (None, pytest.approx(0.0004))


@pytest.mark.parametrize("amount", [0, -1, "1", True])
def test_a_budget_that_is_no_amount_is_refused(make: Any, amount: Any) -> None:
    with pytest.raises(ConfigError, match="max_usd"):
        make(max_usd=amount)


@pytest.mark.parametrize("task", ["x", "ü" * 50, "\N{GRINNING FACE}" * 50, '"\\' * 50])
def test_the_bound_of_a_prompt_is_at_least_the_bytes_of_its_texts(task: str) -> None:
    template = RequestTemplate("a", "http://localhost", "m", 1, None, Definition(("ä definition",), b""))  # type: ignore[arg-type]  # the digest is of no matter
    body = Request(template, task).arguments()
    texts = [body["system"][0]["text"], body["messages"][0]["content"]]
    assert Request(template, task).most_prompt_tokens >= 50 + sum(len(text.encode()) for text in texts)


def test_the_limits_of_a_run_are_among_the_settings(config: Path, make: Any) -> None:
    table = json.loads(config.read_text(encoding="utf-8"))
    table["performance"] = {"prompt_caching": False}
    config.write_text(json.dumps(table), encoding="utf-8")
    shown = {setting.name: (setting.value, setting.origin) for setting in make(max_usd=2.5).settings.describe()}
    assert shown["max_usd"] == (2.5, "argument")
    assert shown["prompt_caching"] == (False, "claude.json")
