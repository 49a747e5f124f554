"""What has to be reached: the lines of the table of targets, and what a case found for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

__all__ = ["LINES", "Target"]

LINES: Dict[str, str] = {
    "tier": "`cache.get`, in-process tier: at most 2 us; 5 times faster than cashews, aiocache, LiteLLM",
    "execution": "cached `execute_agent`, 2 KB / 20 KB answer: at most 15 us / 17 us",
    "memory limit": "memory backend, set at the limit with 1k / 100k entries: within 1.3 times; at most 6 us",
    "limit": "every store, sealed, set at the limit: at most 2 times one with room",
    "disk hit": "disk hit, verified: at most 1.15 times diskcache in a thread; 64 concurrent: 0.3 times per hit",
    "disk store": "disk store: at most 1.2 times diskcache's own set in a thread",
    "redis hit": "Redis hit, verified: at most 1.0 times redis.asyncio GET as it comes; 64 concurrent: 0.3 times",
    "redis store": "Redis store with account and limit: at most 1.4 times redis.asyncio SET",
    "redis many": "Redis, 100 keys: at most 1.5 times MGET",
    "memcached hit": "Memcached hit, verified: at most 1.15 times PooledClient.get in a thread; 64 at once: 0.3 times",
    "one call": "200 callers, one cold key, 100 ms call: 105 ms in a process, 150 ms over 4 on Redis; 1 call",
    "batch": "1,000 tasks of 50 ms, 100 at a time, everything on: 1.1 times ideal on top of what the SDK needs",
    "opening": "open 1k / 100k entries: same, at most 20 ms, memory flat",
    "usage": "`usage()`: the same with 1k and 100k entries on memory, disk, Redis; stated on Memcached",
    "stall": "longest stall of the event loop in all of the above: 5 ms",
    "import": "`import claude_force_cache` / `claude-force --help`: at most 60 ms / 250 ms over the bare interpreter",
}
"""The lines, by the name that a target gives for its own."""


@dataclass(frozen=True)
class Target:
    """A figure that belongs to a line, and its limit.

    :param line: the name in :data:`LINES`.
    :param what: what was measured: store, size, placement.
    :param limit: the most that the figure may be.
    :param least: whether the limit is the least instead.
    :param note: what else has to be known of it.
    """

    line: str
    what: str
    figure: float
    limit: float
    unit: str
    least: bool = False
    note: str = ""

    @property
    def share(self) -> float:
        """How much of what is allowed was used; above 1 is too much."""
        if self.least:
            return self.limit / self.figure if self.figure else float("inf")
        return self.figure / self.limit

    @property
    def met(self) -> bool:
        """Whether the figure keeps to its limit."""
        return self.share <= 1.0

    @property
    def measured(self) -> str:
        """The figure beside its limit, in words."""
        bound = "at least" if self.least else "at most"
        note = f"; {self.note}" if self.note else ""
        return f"{_number(self.figure)} {self.unit} ({bound} {self.limit:g}{note})"


def _number(figure: float) -> str:
    return f"{figure:.2f}" if abs(figure) < 10 else f"{figure:,.1f}"
