"""The ledger: what an orchestrator's executions add up to."""

from __future__ import annotations

import threading
from typing import Optional

from ._answer import Answer
from ._result import Totals

__all__ = ["Ledger"]


class Ledger:
    """Counts, from any thread.

    Money and tokens are counted when an answer arrives from the API, not when somebody receives it: an answer
    whose caller has been cancelled was paid for all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = self._failures = self._calls = self._hits = 0
        self._input_tokens = self._output_tokens = self._unknown_cost = 0
        self._cache_write_tokens = self._cache_read_tokens = 0
        self._usd_spent = self._usd_saved = self._usd_saved_by_prompt_cache = 0.0

    def attempt(self) -> None:
        """Count a request to the API."""
        with self._lock:
            self._calls += 1

    def paid(self, answer: Answer, cost: Optional[float], prompt_cache_saved: Optional[float]) -> None:
        """Count an answer of the API."""
        with self._lock:
            self._input_tokens += answer.prompt_tokens
            self._output_tokens += answer.output_tokens
            self._cache_write_tokens += answer.cache_write_tokens
            self._cache_read_tokens += answer.cache_read_tokens
            self._usd_saved_by_prompt_cache += prompt_cache_saved or 0.0
            if cost is None:
                self._unknown_cost += 1
            else:
                self._usd_spent += cost

    def answered(self, *, success: bool) -> None:
        """Count an execution that its own call answered."""
        with self._lock:
            self._tasks += 1
            self._failures += not success

    def saved(self, cost: Optional[float], *, success: bool) -> None:
        """Count an execution that was answered without a call of its own."""
        with self._lock:
            self._tasks += 1
            self._hits += 1
            self._failures += not success
            if cost is None:
                self._unknown_cost += 1
            else:
                self._usd_saved += cost

    def failed(self) -> None:
        """Count an execution without an answer."""
        with self._lock:
            self._tasks += 1
            self._failures += 1

    def totals(self) -> Totals:
        """Return the sums so far."""
        with self._lock:
            return Totals(
                tasks=self._tasks,
                failures=self._failures,
                calls=self._calls,
                hits=self._hits,
                input_tokens=self._input_tokens,
                output_tokens=self._output_tokens,
                cache_write_tokens=self._cache_write_tokens,
                cache_read_tokens=self._cache_read_tokens,
                usd_spent=self._usd_spent,
                usd_saved=self._usd_saved,
                usd_saved_by_prompt_cache=self._usd_saved_by_prompt_cache,
                unknown_cost=self._unknown_cost,
            )
