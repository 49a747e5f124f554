"""How a check says that a rule is broken."""

from __future__ import annotations

from typing import Sequence, Tuple

__all__ = ["ConformanceError"]


class ConformanceError(AssertionError):
    """Raised when a backend breaks a rule of the contract.

    :param message: what was seen and what the contract says.
    :param steps: the calls that led there, in order: the smallest example that was found.
    """

    def __init__(self, message: str, steps: Sequence[str] = ()) -> None:
        super().__init__(message, steps)
        self.message = message
        self.steps: Tuple[str, ...] = tuple(steps)

    def __str__(self) -> str:
        lines = [self.message]
        if self.steps:
            lines.append("after these steps:")
            lines += [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join(lines)


# Where its users find it; pytest shows the name with the module.
ConformanceError.__module__ = "claude_force_cache.testing"
