"""One execution: from the arguments of a caller to a result."""

from __future__ import annotations

import time
from typing import Optional, Tuple

from claude_force_cache import CacheEntry

from ._answer import Answer
from ._context import Context
from ._errors import OrchestratorError
from ._memory import Recalled
from ._result import AgentResult, ExecutionMetadata, made
from ._settings import DEFAULT_MODEL
from ._tracking import ExecutionRecord, Outcome
from ._validation import is_agent_name

__all__ = ["Execution"]


class Execution:
    """What is known of one execution while it runs.

    :ivar agent_name: as given; its ``repr`` if it is not even text.
    :ivar task: as given.
    :ivar model: the model that is asked.
    :ivar paid: what the API answered to this execution's own call. It is kept here so that nothing that fails
        afterwards can lose it.
    :ivar batch: whether it was paid for as a part of a batch.
    :ivar context: data that the task is sent along with.
    :ivar answer: what the result was made of, or None.
    :ivar key: the key that the answer is stored under, as far as it is known.
    :ivar backend: the cache that was asked, or None.
    :ivar run: what the executions of one run of a workflow have in common.
    :ivar recorded: whether its record has been made.
    :ivar recalled: what the agent's memory gave to it, or None if it has none.
    :ivar suspicions: what is suspicious about the task and its context, as far as that is known.
    """

    __slots__ = (
        "_position",
        "_started",
        "_workflow",
        "agent_name",
        "answer",
        "backend",
        "batch",
        "context",
        "key",
        "model",
        "paid",
        "recalled",
        "recorded",
        "run",
        "suspicions",
        "task",
    )

    def __init__(
        self,
        agent_name: str,
        task: str,
        model: Optional[str],
        workflow: Optional[str],
        position: Optional[int],
        *,
        run: Optional[str] = None,
        waited: float = 0.0,
    ) -> None:
        self._started = time.perf_counter() - waited
        self._workflow = workflow
        self._position = position
        self.agent_name = agent_name if isinstance(agent_name, str) else repr(agent_name)
        self.task = task
        self.model = model if isinstance(model, str) and model else DEFAULT_MODEL
        self.run = run
        self.paid: Optional[Answer] = None
        self.answer: Optional[Answer] = None
        self.key: Optional[str] = None
        self.backend: Optional[str] = None
        self.recorded = False
        self.batch = False
        self.context: Tuple[Context, ...] = ()
        self.recalled: Optional[Recalled] = None
        self.suspicions: Tuple[str, ...] = ()

    @property
    def _memory_sessions(self) -> int:
        return 0 if self.recalled is None else len(self.recalled.context)

    @property
    def workflow(self) -> Optional[str]:
        """The workflow that it belongs to, as given."""
        return self._workflow

    def succeed(
        self,
        answer: Answer,
        entry: Optional[CacheEntry[Answer]],
        *,
        cost: Optional[float],
        prompt_cache_saved: Optional[float],
    ) -> AgentResult:
        """Return the result of an execution that has an answer, of use or not.

        :param entry: what the answer came in, if it came without a call of its own.
        :param cost: what the answer cost, or would have cost, in USD.
        :param prompt_cache_saved: what the API's prompt cache saved of it; not looked at if it is cached.
        """
        cached = entry is not None
        self.answer = answer
        prompt_tokens, output_tokens = answer.prompt_tokens, answer.output_tokens
        error = answer.problem()
        metadata = {
            "model": answer.model,
            "input_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "tokens_used": prompt_tokens + output_tokens,
            "execution_time_ms": (time.perf_counter() - self._started) * 1000,
            "cached": cached,
            "cache_age_seconds": None if entry is None else entry.age,
            "estimated_cost": 0.0 if cached else cost,
            "saved_cost": cost if cached else 0.0,
            "workflow_name": self._workflow,
            "workflow_position": self._position,
            "stop_reason": answer.stop_reason,
            "request_id": answer.request_id,
            "truncated": answer.truncated,
            "stale": entry is not None and entry.stale,
            "suspicions": self.suspicions,
            "memory_sessions": self._memory_sessions,
            "prompt_cache_saved": 0.0 if cached else prompt_cache_saved,
        }
        result = {
            "agent_name": self.agent_name,
            "success": error is None,
            "output": answer.text if error is None else "",
            "metadata": made(ExecutionMetadata, metadata),
            "errors": () if error is None else (str(error),),
            "error": error,
        }
        return made(AgentResult, result)

    def fail(self, error: OrchestratorError) -> AgentResult:
        """Return the result of an execution that has no answer."""
        return AgentResult(self.agent_name, False, "", self._metadata_without_answer(), (str(error),), error)

    def cancel(self) -> AgentResult:
        """Return the result of an execution that was cancelled, which nobody receives, but which is recorded."""
        return AgentResult(self.agent_name, False, "", self._metadata_without_answer(), ("cancelled",))

    def record(self, result: AgentResult, ended: float, error: Optional[str]) -> ExecutionRecord:
        """Return what is recorded of the execution, once it has a result.

        :param ended: seconds since 1970.
        :param error: the name of its error's class, or None.
        """
        self.recorded = True
        answer, metadata = self.answer, result.metadata
        outcome: Outcome
        agent: Optional[str] = self.agent_name
        if error is None:
            outcome = "hit" if metadata.cached else "miss" if self.backend is not None else "bypass"
        else:
            outcome = "cancelled" if error in ("CancelledError", "StoppedError") else "failure"
            if not is_agent_name(self.agent_name):
                agent = None  # it may be anything, a task in the wrong place
        return ExecutionRecord(
            ended,
            agent,
            metadata.model,
            outcome,
            metadata.execution_time_ms / 1000,
            error,
            0 if answer is None else answer.input_tokens,
            0 if answer is None else answer.output_tokens,
            0 if answer is None else answer.cache_write_tokens,
            0 if answer is None else answer.cache_read_tokens,
            metadata.estimated_cost,
            metadata.saved_cost,
            self.backend,
            metadata.cache_age_seconds,
            self.key,
            metadata.stale,
            False,
            self._workflow,
            self._position,
            self.run,
            metadata.prompt_cache_saved,
        )

    def record_beside(
        self,
        answer: Answer,
        ended: float,
        *,
        latency: float,
        cost: Optional[float],
        prompt_cache_saved: Optional[float],
    ) -> ExecutionRecord:
        """Return what is recorded of an answer to this execution's call that is not in its result.

        :param latency: seconds that the call took.
        """
        return ExecutionRecord(
            ended,
            self.agent_name,
            answer.model,
            "background",
            latency,
            None,
            answer.input_tokens,
            answer.output_tokens,
            answer.cache_write_tokens,
            answer.cache_read_tokens,
            cost,
            0.0,
            self.backend,
            workflow=self._workflow,
            position=self._position,
            run=self.run,
            prompt_cache_saved=prompt_cache_saved,
        )

    def _metadata_without_answer(self) -> ExecutionMetadata:
        elapsed = (time.perf_counter() - self._started) * 1000
        return ExecutionMetadata(
            self.model,
            0,
            0,
            0,
            elapsed,
            False,
            None,
            0.0,
            0.0,
            self._workflow,
            self._position,
            suspicions=self.suspicions,
            memory_sessions=self._memory_sessions,
        )
