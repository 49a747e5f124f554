"""Options: what may be said of one execution besides the agent and the task."""

from __future__ import annotations

from typing import Iterable, Optional, Sequence, Tuple

from typing_extensions import Literal, TypedDict

from ._context import Context

__all__ = ["CACHE_MODES", "CacheMode", "ExecutionOptions", "SuspicionPolicy"]

CacheMode = Literal["no-cache", "no-store", "only-if-cached"]
"""How one execution uses the cache; see :meth:`AsyncAgentOrchestrator.execute_agent`."""

CACHE_MODES: Tuple[CacheMode, ...] = ("no-cache", "no-store", "only-if-cached")
"""All of them."""

SuspicionPolicy = Literal["report", "refuse"]
"""What to do about suspicious text: say so in the result, or not send it."""


class ExecutionOptions(TypedDict, total=False):
    """The options that every method takes which executes tasks; :meth:`AsyncAgentOrchestrator.execute_agent` explains.

    What is left out, or None, is as the agent or the orchestrator has it.
    """

    max_tokens: int
    temperature: Optional[float]
    workflow_name: Optional[str]
    deadline_seconds: Optional[float]
    context: Sequence[Context]
    use_memory: Optional[bool]
    cache: Optional[CacheMode]
    ttl_hours: Optional[float]
    max_age_hours: Optional[float]
    stale_while_revalidate_hours: Optional[float]
    stale_if_error_hours: Optional[float]
    refresh_ahead: Optional[float]
    variants: Optional[int]
    tags: Iterable[str]
