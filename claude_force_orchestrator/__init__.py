"""An async orchestrator of Claude agents that answers repeats from a cache.

::

    async with AsyncAgentOrchestrator(Path(".claude/claude.json")) as orchestrator:
        result = await orchestrator.execute_agent("code-reviewer", "Review this function: ...")
        print(result.output, result.metadata.cached, result.metadata.saved_cost)
"""

from __future__ import annotations

from ._answer import Answer, AnswerCodec
from ._errors import (
    AnswerError,
    AuthenticationError,
    BadRequestError,
    CallError,
    CallTimeoutError,
    ConfigError,
    ConnectionFailedError,
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
    UnknownAgentError,
)
from ._orchestrator import AgentTask, AsyncAgentOrchestrator, CacheMode
from ._prices import Price, PriceList, Tariff
from ._project import AgentEntry, Definition, Project
from ._result import AgentResult, ExecutionMetadata, Totals
from ._settings import DEFAULT_BASE_URL, DEFAULT_MODEL, Setting, Settings
from ._validation import MAX_TASK_CHARACTERS

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_MODEL",
    "MAX_TASK_CHARACTERS",
    "AgentEntry",
    "AgentResult",
    "AgentTask",
    "Answer",
    "AnswerCodec",
    "AnswerError",
    "AsyncAgentOrchestrator",
    "AuthenticationError",
    "BadRequestError",
    "CacheMode",
    "CallError",
    "CallTimeoutError",
    "ConfigError",
    "ConnectionFailedError",
    "Definition",
    "EmptyAnswerError",
    "ExecutionMetadata",
    "IncompleteAnswerError",
    "InternalError",
    "InvalidAnswerError",
    "InvalidTaskError",
    "NotCachedError",
    "OrchestratorError",
    "OverloadedError",
    "PermissionDeniedError",
    "Price",
    "PriceList",
    "Project",
    "ProjectError",
    "RateLimitError",
    "RefusedError",
    "ServerError",
    "Setting",
    "Settings",
    "SpendLimitError",
    "Tariff",
    "Totals",
    "UnknownAgentError",
]
