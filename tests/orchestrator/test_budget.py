"""Budgets: what is spent never exceeds them, and nothing is refused that fits."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from typing import Any, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator import Budget, BudgetError, ConfigError

_usd = st.one_of(st.floats(0, 0.4), st.floats(0, 1e-6), st.integers(0, 40).map(lambda cents: cents / 100))
_share = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 1.0]))
_calls = st.lists(st.tuples(_usd, _share, st.integers(0, 3)), max_size=30)


async def _call(budget: Budget, most: float, share: Optional[float], turns: int) -> Tuple[float, bool]:
    """Return what a call cost, and whether it was admitted."""
    try:
        reservation = await budget.reserve(most)
    except BudgetError:
        return 0.0, False
    for _ in range(turns):
        await asyncio.sleep(0)
        assert budget.spent + budget.reserved <= budget.max_usd + 1e-9
    cost = None if share is None else share * most
    reservation.settle(cost)
    return (most if cost is None else cost), True


@given(calls=_calls, limit=st.floats(0.001, 2))
def test_calls_at_the_same_time_never_spend_more_than_the_budget(
    calls: List[Tuple[float, Optional[float], int]], limit: float
) -> None:
    async def main() -> List[Tuple[float, bool]]:
        return list(await asyncio.gather(*(_call(budget, *call) for call in calls)))

    budget = Budget(limit)
    ended = asyncio.run(main())
    costs = math.fsum(cost for cost, _ in ended)
    assert costs <= limit + 1e-9
    assert budget.spent == pytest.approx(costs, abs=1e-9)
    assert budget.reserved == 0
    for (most, _, _), (_, admitted) in zip(calls, ended):
        # Refused is only what does not fit even now that all others are settled.
        assert admitted or budget.spent + most > limit - 1e-9


def test_whoever_does_not_fit_waits_for_those_who_may_turn_out_cheaper() -> None:
    async def main() -> None:
        budget = Budget(1.0)
        first = await budget.reserve(0.9)
        waiting = asyncio.ensure_future(budget.reserve(0.9))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.settle(0.05)
        second = await waiting
        assert (budget.spent, budget.reserved) == (0.05, 0.9)
        second.settle(0.5)
        with pytest.raises(
            BudgetError, match=r"budget of \$1 .*\$0\.550000 are spent.*up to \$0\.500000; raise max_usd"
        ):
            await budget.reserve(0.5)

    asyncio.run(main())


def test_whoever_waits_is_refused_as_soon_as_it_cannot_fit_any_more() -> None:
    async def main() -> None:
        budget = Budget(1.0)
        first = await budget.reserve(0.9)
        waiting = [asyncio.ensure_future(budget.reserve(most)) for most in (0.9, 0.1)]
        first.settle(0.9)
        refused, admitted = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(refused, BudgetError)
        assert not isinstance(admitted, BaseException)

    asyncio.run(main())


def test_a_check_says_whether_a_call_could_fit_once_the_others_are_settled() -> None:
    async def main() -> None:
        budget = Budget(1.0)
        await budget.reserve(1.0)
        budget.check(1.0)
        with pytest.raises(BudgetError):
            budget.check(1.1)

    asyncio.run(main())


def test_what_is_left_unsettled_counts_in_full_and_what_is_settled_counts_once() -> None:
    async def main() -> Budget:
        budget = Budget(1.0)
        with pytest.raises(ZeroDivisionError), await budget.reserve(0.25):
            raise ZeroDivisionError
        with await budget.reserve(0.25) as reservation:
            assert reservation.usd == 0.25
            reservation.settle(0.125)
            reservation.settle(0.25)
        return budget

    budget = asyncio.run(main())
    assert repr(budget) == "Budget(1.0, spent=0.375, reserved=0.0)"


def test_whoever_leaves_while_waiting_holds_nothing() -> None:
    async def main() -> None:
        budget = Budget(1.0)
        first = await budget.reserve(1.0)
        waiting = asyncio.ensure_future(budget.reserve(1.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        first.settle(0.0)
        assert (await budget.reserve(1.0)).usd == 1.0

    asyncio.run(main())


def test_event_loops_in_several_threads_share_a_budget() -> None:
    budget, admitted = Budget(1.0), []

    async def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(50):
            most = draw.random() / 20
            cost, fits = await _call(budget, most, draw.random(), 1)
            admitted.append(cost if fits else 0.0)

    threads = [threading.Thread(target=lambda seed=seed: asyncio.run(work(seed))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 200
    assert budget.spent == pytest.approx(math.fsum(admitted))
    assert budget.spent <= 1.0
    assert budget.reserved == 0


def test_a_loop_that_was_closed_while_it_waited_stops_nobody() -> None:
    budget = Budget(1.0)
    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(budget.reserve(1.0))
    waiting = loop.create_task(budget.reserve(1.0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    first.settle(0.5)
    assert asyncio.run(budget.reserve(0.5)).usd == 0.5
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # its loop is closed, as the test wants it


@pytest.mark.parametrize("amount", [0, -1, math.nan, math.inf, "1", True])
def test_an_amount_that_is_none_is_refused(amount: Any) -> None:
    with pytest.raises(ConfigError, match="max_usd must be a number above 0"):
        Budget(amount)
