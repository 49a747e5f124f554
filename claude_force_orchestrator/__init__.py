"""An async orchestrator of Claude agents that answers repeats from a cache.

::

    async with AsyncAgentOrchestrator(Path(".claude/claude.json")) as orchestrator:
        result = await orchestrator.execute_agent("code-reviewer", "Review this function: ...")
        print(result.output, result.metadata.cached, result.metadata.saved_cost)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, List

if TYPE_CHECKING:
    from ._answer import Answer, AnswerCodec
    from ._budget import Budget, Reservation
    from ._cached import cached
    from ._context import MAX_CONTEXT_CHARACTERS, Context
    from ._errors import (
        AnswerError,
        AuthenticationError,
        BadRequestError,
        BudgetError,
        CallError,
        CallTimeoutError,
        ConfigError,
        ConnectionFailedError,
        DeadlineExceededError,
        EmptyAnswerError,
        IncompleteAnswerError,
        InternalError,
        InvalidAnswerError,
        InvalidTaskError,
        NotCachedError,
        OrchestratorError,
        OverloadedError,
        PermissionDeniedError,
        ProjectError,
        RateLimitError,
        RefusedError,
        ServerError,
        SpendLimitError,
        StoppedError,
        SuspiciousTaskError,
        UnknownAgentError,
        WorkflowError,
    )
    from ._events import OrchestratorEvents
    from ._explain import Explanation, NearestEntry
    from ._families import FamilyLimit, model_family
    from ._freshness import Freshness
    from ._message_batches import MessageBatches
    from ._middleware import CacheMiddleware
    from ._options import CacheMode, ExecutionOptions, SuspicionPolicy
    from ._orchestrator import AgentTask, AsyncAgentOrchestrator
    from ._prices import Price, PriceList, Tariff
    from ._project import AgentEntry, Definition, Project
    from ._result import AgentResult, ExecutionMetadata, Totals
    from ._settings import DEFAULT_BASE_URL, DEFAULT_MODEL, Setting, Settings
    from ._suspicion import SUSPICIONS
    from ._tracker import SQLiteTracker
    from ._tracking import ExecutionRecord, Outcome, Tracker
    from ._validation import MAX_TASK_CHARACTERS
    from ._workflow import Step, Workflow
    from ._workflow_run import StepResult, StepState, WorkflowResult

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_MODEL",
    "MAX_CONTEXT_CHARACTERS",
    "MAX_TASK_CHARACTERS",
    "SUSPICIONS",
    "AgentEntry",
    "AgentResult",
    "AgentTask",
    "Answer",
    "AnswerCodec",
    "AnswerError",
    "AsyncAgentOrchestrator",
    "AuthenticationError",
    "BadRequestError",
    "Budget",
    "BudgetError",
    "CacheMiddleware",
    "CacheMode",
    "CallError",
    "CallTimeoutError",
    "ConfigError",
    "ConnectionFailedError",
    "Context",
    "DeadlineExceededError",
    "Definition",
    "EmptyAnswerError",
    "ExecutionMetadata",
    "ExecutionOptions",
    "ExecutionRecord",
    "Explanation",
    "FamilyLimit",
    "Freshness",
    "IncompleteAnswerError",
    "InternalError",
    "InvalidAnswerError",
    "InvalidTaskError",
    "MessageBatches",
    "NearestEntry",
    "NotCachedError",
    "OrchestratorError",
    "OrchestratorEvents",
    "Outcome",
    "OverloadedError",
    "PermissionDeniedError",
    "Price",
    "PriceList",
    "Project",
    "ProjectError",
    "RateLimitError",
    "RefusedError",
    "Reservation",
    "SQLiteTracker",
    "ServerError",
    "Setting",
    "Settings",
    "SpendLimitError",
    "Step",
    "StepResult",
    "StepState",
    "StoppedError",
    "SuspicionPolicy",
    "SuspiciousTaskError",
    "Tariff",
    "Totals",
    "Tracker",
    "UnknownAgentError",
    "Workflow",
    "WorkflowError",
    "WorkflowResult",
    "cached",
    "model_family",
]

# The modules that define the public names, the lightest first. They are imported when a name of theirs is
# asked for: `claude-force --help` needs none of them, and is not to wait half a second for them.
_MODULES = (
    "_errors",
    "_validation",
    "_result",
    "_context",
    "_suspicion",
    "_options",
    "_freshness",
    "_explain",
    "_answer",
    "_project",
    "_prices",
    "_budget",
    "_workflow",
    "_workflow_run",
    "_tracking",
    "_tracker",
    "_settings",
    "_events",
    "_families",
    "_message_batches",
    "_orchestrator",
    "_cached",
    "_middleware",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
