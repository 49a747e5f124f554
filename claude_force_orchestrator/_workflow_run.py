"""Runs of workflows: each step as soon as what it needs has ended, and what became of all of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Awaitable, Callable, Dict, List, Optional, Tuple

from typing_extensions import Literal

from ._context import Context
from ._errors import WorkflowError
from ._result import AgentResult
from ._workflow import Step, Workflow

__all__ = ["StepResult", "StepState", "WorkflowResult", "run_steps"]

StepState = Literal["waiting", "running", "done", "cached", "failed", "skipped"]
"""How it stands with a step: ``done`` has been answered by the API, ``cached`` without a call of its own."""


@dataclass(frozen=True)
class StepResult:
    """How it stands with one step of a workflow.

    :param id: the step.
    :param agent_name: the agent that does it.
    :param state: how it stands.
    :param result: the agent's result, or None before there is one and if the step was skipped.
    :param reason: why it was skipped, or the empty string.
    """

    id: str
    agent_name: str
    state: StepState
    result: Optional[AgentResult] = None
    reason: str = ""

    @property
    def output(self) -> str:
        """The answer, or the empty string."""
        return "" if self.result is None else self.result.output


@dataclass(frozen=True)
class WorkflowResult:
    """What became of a run of a workflow.

    :param workflow_name: the workflow.
    :param success: whether no step failed, but for those whose failure another step asked about, ran and succeeded.
    :param output: the answer of the last step, in the workflow's order, that has one.
    :param steps: the steps in that order.
    :param execution_time_ms: milliseconds that the run took.
    """

    workflow_name: str
    success: bool
    output: str
    steps: Tuple[StepResult, ...]
    execution_time_ms: float

    def step(self, id: str) -> StepResult:  # noqa: A002 - as the definition calls it
        """Return what became of a step.

        :raises WorkflowError: if the workflow has no such step.
        """
        for step in self.steps:
            if step.id == id:
                return step
        raise WorkflowError(f"workflow {self.workflow_name!r} has no step {id!r:.80}")

    @property
    def errors(self) -> Tuple[str, ...]:
        """A line for each step that failed."""
        return tuple(
            f"{step.id}: {error}" for step in self.steps if step.result is not None for error in step.result.errors
        )

    @property
    def usd_spent(self) -> float:
        """USD that the steps spent, as far as the prices are known."""
        return sum(result.metadata.estimated_cost or 0.0 for result in self._results)

    @property
    def usd_saved(self) -> float:
        """USD that the cache saved, likewise."""
        return sum(result.metadata.saved_cost or 0.0 for result in self._results)

    @property
    def unknown_cost(self) -> int:
        """How many steps were answered by models without a known price."""
        return sum(None in {result.metadata.estimated_cost, result.metadata.saved_cost} for result in self._results)

    def count(self, state: StepState) -> int:
        """Return how many steps are in a state."""
        return sum(step.state == state for step in self.steps)

    @property
    def _results(self) -> List[AgentResult]:
        return [step.result for step in self.steps if step.result is not None]


async def run_steps(
    workflow: Workflow,
    task: str,
    execute: Callable[[int, Step, str, Tuple[Context, ...]], Awaitable[AgentResult]],
    on_step: Callable[[StepResult], None],
) -> WorkflowResult:
    """Return the result of all steps.

    Each starts as soon as what it needs has ended, as many at once as there are. Whatever ends this early, be it a
    cancellation, cancels the steps that are under way, and waits for them.

    :param task: the workflow's task.
    :param execute: executes a step: its number from 1, the step, what its agent is asked, and the outputs that it is
        given.
    :param on_step: told of each change.
    """
    started = time.perf_counter()
    ended: Dict[str, StepResult] = {}
    waiting = dict(enumerate(workflow.steps, 1))
    running: Dict[asyncio.Future[AgentResult], Step] = {}

    def end(result: StepResult) -> None:
        ended[result.id] = result
        on_step(result)

    try:
        while waiting or running:
            # In the workflow's order, which puts each step after all that it needs.
            for number, step in tuple(waiting.items()):
                if not all(need in ended for need in step.needs):
                    continue
                del waiting[number]
                reason = _reason_to_skip(step, ended)
                if reason is not None:
                    end(StepResult(step.id, step.agent, "skipped", reason=reason))
                    continue
                outputs = {name: ended[name].output for name in step.inputs if ended[name].output}
                context = tuple(Context("output", text, name) for name, text in outputs.items())
                text = step.render(task, outputs.keys())
                running[asyncio.ensure_future(execute(number, step, text, context))] = step
                on_step(StepResult(step.id, step.agent, "running"))
            if running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    step, result = running.pop(future), future.result()
                    end(StepResult(step.id, step.agent, _state(result), result))
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    steps = tuple(ended[step.id] for step in workflow.steps)
    return WorkflowResult(
        workflow.name,
        _succeeded(workflow, ended),
        next((step.output for step in reversed(steps) if step.output), ""),
        steps,
        (time.perf_counter() - started) * 1000,
    )


def _state(result: AgentResult) -> StepState:
    if not result.success:
        return "failed"
    return "cached" if result.metadata.cached else "done"


def _reason_to_skip(step: Step, ended: Dict[str, StepResult]) -> Optional[str]:
    """Return why a step does not run, or None if it does."""
    judged = step.when.judged if step.when is not None else frozenset()
    for name in step.needs:
        state = ended[name].state
        if name not in judged and state in {"failed", "skipped"}:
            return f"{name} {'failed' if state == 'failed' else 'was skipped'}"
    if step.when is not None and not step.when.holds(ended):
        return f"not so: {step.when.text}"
    return None


def _succeeded(workflow: Workflow, ended: Dict[str, StepResult]) -> bool:
    failed = {step.id for step in ended.values() if step.state == "failed"}
    for step in workflow.steps:
        if step.when is not None and ended[step.id].state in {"done", "cached"}:
            failed -= step.when.recovers
    return not failed
