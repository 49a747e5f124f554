"""What a check is, and the list of all of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Dict, Optional, Tuple

if TYPE_CHECKING:
    from ._kit import Kit

__all__ = ["CHECKS", "Check", "Need", "check"]

Need = Callable[["Kit"], Optional[str]]
"""Returns why a check cannot run on a suite, or None if it can."""


@dataclass(frozen=True)
class Check:
    """One rule of the contract, and the function that tries to break it.

    :param name: names the rule; ``BackendConformance`` has it as the test method ``test_<name>``.
    :param rule: what the contract says, in one sentence.
    :param run: raises :class:`~claude_force_cache.testing.ConformanceError` if a backend breaks the rule.
    :param needs: what a backend or its suite must be able to do for the check to make sense.
    """

    name: str
    rule: str
    run: Callable[[Kit], None]
    needs: Tuple[Need, ...] = ()

    def obstacle(self, kit: Kit) -> Optional[str]:
        """Return why the check cannot run, or None if it can."""
        return next((reason for reason in (need(kit) for need in self.needs) if reason is not None), None)


CHECKS: Dict[str, Check] = {}
"""Every check by its name, in the order in which they run."""


def check(*needs: Need) -> Callable[[Callable[[Kit], None]], Callable[[Kit], None]]:
    """Add the decorated function to the checks, under its own name; its docstring is the rule."""

    def add(function: Callable[[Kit], None]) -> Callable[[Kit], None]:
        name = function.__name__
        if name in CHECKS:
            raise ValueError(f"two checks are called {name}")
        rule = " ".join((inspect.getdoc(function) or "").split())
        CHECKS[name] = Check(name, rule, function, needs)
        return function

    return add
