"""A clock for tests."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """A clock that stands still until it is told otherwise; hand it to a backend or a cache as ``clock``.

    :param now: the time to begin with, in seconds since the epoch.
    """

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds since the epoch."""
        return self.now

    def __repr__(self) -> str:
        return f"ManualClock({self.now!r})"

    def advance(self, seconds: float) -> None:
        """Let time pass; a negative number sets the clock back."""
        self.now += seconds
