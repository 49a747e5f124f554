"""One execution: from the arguments of a caller to a result."""

from __future__ import annotations

import time
from typing import Optional, Tuple

from ._answer import Answer
from ._context import Context
from ._errors import OrchestratorError
from ._memory import Recalled
from ._result import AgentResult, ExecutionMetadata
from ._settings import DEFAULT_MODEL

__all__ = ["Execution"]


class Execution:
    """What is known of one execution while it runs.

    :ivar agent_name: as given; its ``repr`` if it is not even text.
    :ivar task: as given.
    :ivar model: the model that is asked.
    :ivar paid: what the API answered to this execution's own call. It is kept here so that nothing that fails
        afterwards can lose it.
    :ivar context: data that the task is sent along with.
    :ivar recalled: what the agent's memory gave to it, or None if it has none.
    :ivar suspicions: what is suspicious about the task and its context, as far as that is known.
    """

    __slots__ = (
        "_position",
        "_started",
        "_workflow",
        "agent_name",
        "context",
        "model",
        "paid",
        "recalled",
        "suspicions",
        "task",
    )

    def __init__(
        self, agent_name: str, task: str, model: Optional[str], workflow: Optional[str], position: Optional[int]
    ) -> None:
        self._started = time.perf_counter()
        self._workflow = workflow
        self._position = position
        self.agent_name = agent_name if isinstance(agent_name, str) else repr(agent_name)
        self.task = task
        self.model = model if isinstance(model, str) and model else DEFAULT_MODEL
        self.paid: Optional[Answer] = None
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
        self, answer: Answer, *, cached: bool, age: Optional[float], stale: bool, cost: Optional[float]
    ) -> AgentResult:
        """Return the result of an execution that has an answer, of use or not.

        :param cached: whether the answer came without a call of its own.
        :param age: the age of the entry in seconds, if it came out of the cache.
        :param stale: whether the answer is no longer fresh.
        :param cost: what the answer cost, or would have cost, in USD.
        """
        prompt_tokens, output_tokens = answer.prompt_tokens, answer.output_tokens
        error = answer.problem()
        return AgentResult(
            self.agent_name,
            error is None,
            answer.text if error is None else "",
            ExecutionMetadata(
                answer.model,
                prompt_tokens,
                output_tokens,
                prompt_tokens + output_tokens,
                (time.perf_counter() - self._started) * 1000,
                cached,
                age,
                0.0 if cached else cost,
                cost if cached else 0.0,
                self._workflow,
                self._position,
                answer.stop_reason,
                answer.request_id,
                answer.truncated,
                stale,
                self.suspicions,
                self._memory_sessions,
            ),
            () if error is None else (str(error),),
            error,
        )

    def fail(self, error: OrchestratorError) -> AgentResult:
        """Return the result of an execution that has no answer."""
        return AgentResult(self.agent_name, False, "", self._metadata_without_answer(), (str(error),), error)

    def cancel(self) -> AgentResult:
        """Return the result of an execution that was cancelled, which nobody receives, but which is recorded."""
        return AgentResult(self.agent_name, False, "", self._metadata_without_answer(), ("cancelled",))

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
