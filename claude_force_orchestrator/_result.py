"""Results: what an execution returns, and what all of them add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional, Tuple, Type, TypeVar

from ._errors import OrchestratorError

__all__ = ["AgentResult", "ExecutionMetadata", "Totals", "made"]

T = TypeVar("T", "AgentResult", "ExecutionMetadata")


def made(kind: Type[T], fields: Mapping[str, Any]) -> T:
    """Return what ``kind(**fields)`` is, of all its fields, in a quarter of the time. Each cached answer needs it."""
    result = object.__new__(kind)
    result.__dict__.update(fields)
    return result


@dataclass(frozen=True)
class ExecutionMetadata(Mapping[str, Any]):
    """What an execution took. A mapping of its own fields too: ``metadata["cached"]`` is ``metadata.cached``.

    :param model: the model that was asked, or that answered once there is an answer.
    :param input_tokens: tokens of the prompt, those of the API's own prompt cache included.
    :param output_tokens: tokens of the answer.
    :param tokens_used: the sum of both. A cached answer reports the tokens of the call that it saved.
    :param execution_time_ms: milliseconds from the call of ``execute_agent`` to the result.
    :param cached: whether the answer came without an API call of its own: out of the cache, or out of a call
        for the same question that was under way.
    :param cache_age_seconds: seconds since the entry was stored, or None if nothing was read from the cache.
    :param estimated_cost: USD that this execution spent, 0.0 if it was cached or never answered, None if the
        model's price is unknown.
    :param saved_cost: USD that the cache saved, 0.0 if not cached, None if the model's price is unknown.
    :param workflow_name: as given by the caller.
    :param workflow_position: as given by the caller.
    :param stop_reason: the API's stop reason, or None without an answer.
    :param request_id: the API's id of the request that was answered, or None.
    :param truncated: whether a limit cut the answer short. Such an answer is not stored.
    :param stale: whether the answer is older than it should be: a new one is being asked for in the background, or
        could not be had.
    :param suspicions: what the task and its context look like besides a task, such as ``task:role-spoofing``; see
        :data:`SUSPICIONS`. Empty if nothing was found, or nothing was looked for because nothing was sent.
    :param memory_sessions: how many earlier sessions of the agent went with the task.
    :param prompt_cache_saved: by how many USD the API's own prompt cache made this execution cheaper, below 0.0 if it
        only wrote there; 0.0 if it was cached or never answered, None if the model's price is unknown.
    """

    model: str
    input_tokens: int
    output_tokens: int
    tokens_used: int
    execution_time_ms: float
    cached: bool
    cache_age_seconds: Optional[float]
    estimated_cost: Optional[float]
    saved_cost: Optional[float]
    workflow_name: Optional[str] = None
    workflow_position: Optional[int] = None
    stop_reason: Optional[str] = None
    request_id: Optional[str] = None
    truncated: bool = False
    stale: bool = False
    suspicions: Tuple[str, ...] = ()
    memory_sessions: int = 0
    prompt_cache_saved: Optional[float] = 0.0

    def __getitem__(self, name: str) -> Any:
        # Fields live in the instance's dictionary, so anything else is a KeyError, as it should be.
        return self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)


@dataclass(frozen=True)
class AgentResult:
    """What became of one task.

    :param agent_name: the agent that was asked.
    :param success: whether there is an answer.
    :param output: the answer, unaltered, or the empty string.
    :param metadata: what it took.
    :param errors: empty, or one line that names the cause and the remedy.
    :param error: the same as an exception, or None. The SDK's own exception is its ``__cause__``.
    """

    agent_name: str
    success: bool
    output: str
    metadata: ExecutionMetadata
    errors: Tuple[str, ...] = ()
    error: Optional[OrchestratorError] = None


@dataclass(frozen=True)
class Totals:
    """What an orchestrator did since it was made.

    :param tasks: executions that ended, failures included, cancelled ones not.
    :param failures: executions without an answer.
    :param calls: requests sent to the API, retries included.
    :param hits: executions answered without an API call of their own.
    :param input_tokens: prompt tokens of the answers that were paid for, those of the API's own prompt cache included.
    :param output_tokens: answer tokens of the same.
    :param cache_write_tokens: prompt tokens of the same that were written to the API's prompt cache.
    :param cache_read_tokens: prompt tokens of the same that were read from it.
    :param usd_spent: USD, over the answers whose price is known.
    :param usd_saved: USD, likewise, by the cache.
    :param usd_saved_by_prompt_cache: USD, likewise, by the API's own prompt cache; below 0.0 if more was written there
        than read.
    :param unknown_cost: paid or saved answers of models without a known price.
    """

    tasks: int = 0
    failures: int = 0
    calls: int = 0
    hits: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    usd_spent: float = 0.0
    usd_saved: float = 0.0
    usd_saved_by_prompt_cache: float = 0.0
    unknown_cost: int = 0
