"""Budgets: what may be spent, kept by admitting only calls that fit at their most."""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import List, Optional, Type

from ._errors import BudgetError
from ._limiter import Waiter
from ._prices import PriceList
from ._request import Request
from ._validation import check_number

__all__ = ["Budget", "Reservation", "worst_case"]

_UNITS = 10**12
"""Sums are kept in whole units of 1e-12 USD: those of floats drift, and a budget that drifts is exceeded."""

_MOST_USD = 1_000_000_000.0


class Budget:
    """An amount of USD that calls draw on, from any number of event loops and threads.

    Before a call its worst case is reserved, and afterwards settled at what it cost. What is spent and what is reserved
    are together never more than the budget. So what is spent is not either, as long as no call costs more than was
    reserved for it.

    :param max_usd: the amount, above 0, or None for no bound.
    :raises ConfigError: if it is no such number.
    """

    def __init__(self, max_usd: Optional[float]) -> None:
        self.max_usd = None if max_usd is None else check_number("max_usd", max_usd, above=0, most=_MOST_USD)
        self._limit = math.inf if self.max_usd is None else _units(self.max_usd)
        self._lock = threading.Lock()
        self._spent = 0
        self._reserved = 0
        self._waiters: List[Waiter] = []

    def __repr__(self) -> str:
        return f"Budget({self.max_usd!r}, spent={self.spent!r}, reserved={self.reserved!r})"

    @property
    def spent(self) -> float:
        """USD that calls have cost, those included that may have been billed without an answer, at their most."""
        return self._spent / _UNITS

    @property
    def reserved(self) -> float:
        """USD that calls under way may cost at most."""
        return self._reserved / _UNITS

    def check(self, most: float) -> None:
        """Return if a call that costs ``most`` USD could be admitted, at once or when others are settled.

        :raises BudgetError: if it could not, whatever those under way turn out to cost.
        """
        with self._lock:
            self._check(_units(most), most)

    async def reserve(self, most: float) -> Reservation:
        """Return a reservation of ``most`` USD, as soon as it fits. Waits only while calls under way hold too much.

        A caller that is cancelled meanwhile holds none afterwards.

        :raises BudgetError: if it no longer fits, whatever those under way turn out to cost.
        """
        units = _units(most)
        while True:
            with self._lock:
                self._check(units, most)
                if self._spent + self._reserved + units <= self._limit:
                    self._reserved += units
                    return Reservation(self, units)
                waiter = Waiter()
                self._waiters.append(waiter)
            await waiter.future

    def reserve_now(self, most: float) -> Optional[Reservation]:
        """Return a reservation of ``most`` USD if it fits at once, or else None."""
        units = _units(most)
        with self._lock:
            if self._spent + self._reserved + units > self._limit:
                return None
            self._reserved += units
            return Reservation(self, units)

    def _check(self, units: int, most: float) -> None:
        if self.max_usd is not None and self._spent + units > self._limit:
            raise BudgetError(
                f"the budget of ${self.max_usd:g} is not enough: ${self.spent:.6f} are spent, and this call may cost "
                f"up to ${most:.6f}; raise max_usd, or lower max_tokens"
            )

    def _settle(self, units: int, cost: int) -> None:
        with self._lock:
            self._reserved -= units
            self._spent += cost
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()


class Reservation:
    """What one call may cost at most. A context manager, too, which settles it at the end, as with None."""

    def __init__(self, budget: Budget, units: int) -> None:
        self._budget = budget
        self._units = units
        self._settled = False

    @property
    def usd(self) -> float:
        """The amount in USD."""
        return self._units / _UNITS

    def settle(self, cost: Optional[float]) -> None:
        """Put what the call cost in place of the reservation. Idempotent: the first time counts.

        :param cost: USD; 0.0 if nothing was billed; None if it is not known, which counts as the whole amount.
        """
        if not self._settled:
            self._settled = True
            self._budget._settle(self._units, self._units if cost is None else _units(cost))

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.settle(None)


def worst_case(request: Request, prices: PriceList, *, at: float, batch: bool = False) -> float:
    """Return what a request can cost at most in USD, once.

    :param at: seconds since 1970.
    :param batch: whether it goes through the API for batches.
    :raises BudgetError: if the price of its model is not known.
    """
    template = request.template
    most = prices.most(
        template.model,
        prompt_tokens=request.most_prompt_tokens,
        max_tokens=template.max_tokens,
        at=at,
        batch=batch,
    )
    if most is None:
        raise BudgetError(
            f"the price of {template.model!r} is not known, so that no budget can be kept: add it to the section "
            "prices of claude.json, or leave max_usd out"
        )
    return most


def _units(usd: float) -> int:
    return round(usd * _UNITS)
