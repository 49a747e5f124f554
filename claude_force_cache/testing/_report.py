"""Running every check without pytest, and what came of it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Callable, Collection, Dict, Optional, Tuple, Type, Union

from ._checks import CHECKS, Check
from ._failure import ConformanceError
from ._kit import Effort, Kit
from ._suite import BackendConformance, closed_gap

__all__ = ["CheckResult", "Report", "check_backend"]

PASSED, FAILED, NOT_RUN, KNOWN_GAP = "passed", "failed", "not run", "known gap"


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    :param name: the check.
    :param rule: what it checks, in one sentence.
    :param outcome: ``passed``, ``failed``, ``not run`` or ``known gap``.
    :param detail: what was wrong, with the smallest example; why it did not run; why the gap is there; or empty.
    :param seconds: how long it took.
    """

    name: str
    rule: str
    outcome: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """What came of all checks, in the order in which they ran.

    :param seed: gives the same examples again.
    :param max_examples: how many examples the state machine ran.
    """

    results: Tuple[CheckResult, ...]
    seed: int
    max_examples: int

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.of(FAILED)

    def of(self, outcome: str) -> Tuple[CheckResult, ...]:
        """Return the results with that outcome."""
        return tuple(result for result in self.results if result.outcome == outcome)

    def as_dict(self) -> Dict[str, object]:
        """Return the report as what JSON can hold."""
        return {
            "passed": self.passed,
            "seed": self.seed,
            "max_examples": self.max_examples,
            "counts": {outcome: len(self.of(outcome)) for outcome in (PASSED, FAILED, NOT_RUN, KNOWN_GAP)},
            "checks": [asdict(result) for result in self.results],
        }

    def __str__(self) -> str:
        ran = len(self.results) - len(self.of(NOT_RUN))
        lines = [f"{ran} of {len(self.results)} checks ran, {len(self.of(FAILED))} failed (seed {self.seed})"]
        lines += [f"{r.outcome}: {r.name}: {r.detail}" for r in self.results if r.outcome != PASSED]
        return "\n".join(lines)


def check_backend(
    suite: Union[BackendConformance, Type[BackendConformance]],
    *,
    derandomize: bool = True,
    seed: Optional[int] = None,
    max_examples: Optional[int] = None,
    checks: Optional[Collection[str]] = None,
    on_result: Optional[Callable[[CheckResult], None]] = None,
) -> Report:
    """Run the checks on a suite, without pytest, and return what came of them. Does not raise for a failure.

    :param derandomize: use the same examples in every run; otherwise others each time.
    :param seed: use these examples.
    :param max_examples: how many examples the state machine runs; by default as the suite says.
    :param checks: the names of the checks to run; by default all.
    :param on_result: called after each check.
    :raises ValueError: if a check is unknown, or ``max_examples`` is below 1.
    """
    if isinstance(suite, type):
        suite = suite()
    unknown = sorted(set(checks or ()) - set(CHECKS))
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}; there are: {', '.join(CHECKS)}")
    effort = Effort.of(
        derandomize=derandomize,
        seed=seed,
        max_examples=suite.max_examples if max_examples is None else max_examples,
    )
    results = []
    for check in CHECKS.values():
        if checks is None or check.name in checks:
            results.append(_result(suite, check, effort))
            if on_result is not None:
                on_result(results[-1])
    return Report(tuple(results), effort.seed, effort.max_examples)


def _result(suite: BackendConformance, check: Check, effort: Effort) -> CheckResult:
    began = time.monotonic()
    obstacle = check.obstacle(Kit(suite, effort, check.name))
    gap = suite.known_gaps.get(check.name)
    outcome, detail = PASSED, ""
    if gap is not None:
        is_open = suite.gap_is_open(check)
        outcome, detail = (KNOWN_GAP, gap) if is_open else (FAILED, closed_gap(check, obstacle))
    elif obstacle is not None:
        outcome, detail = NOT_RUN, obstacle
    else:
        try:
            suite.run_check(check, effort)
        except ConformanceError as failure:
            outcome, detail = FAILED, str(failure)
    return CheckResult(check.name, check.rule, outcome, detail, time.monotonic() - began)
