"""What ``run`` and ``map`` share: how an orchestrator is made, and how a result reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional

from ._failure import FAILED, OVER_BUDGET, USAGE
from ._settings import DEFAULT_CONFIG

if TYPE_CHECKING:
    from .._orchestrator import AsyncAgentOrchestrator
    from .._result import AgentResult

__all__ = ["exit_code", "make_orchestrator", "result_row", "spending", "usd", "what_happened"]


def make_orchestrator(config: Optional[Path], *, timeout: Optional[float], **arguments: Any) -> AsyncAgentOrchestrator:
    """Return an orchestrator of the project at ``config``.

    :raises OrchestratorError: if the settings cannot be used.
    """
    from .._orchestrator import AsyncAgentOrchestrator

    if timeout is not None:
        arguments["timeout_seconds"] = timeout
    return AsyncAgentOrchestrator(config_path=config or DEFAULT_CONFIG, **arguments)


def exit_code(result: AgentResult) -> int:
    """Return 0 for an answer, 3 if the budget did not allow it, 2 if the user has to change what was asked, else 1."""
    from .._errors import BudgetError, ConfigError, InvalidTaskError, UnknownAgentError

    if result.success:
        return 0
    if isinstance(result.error, BudgetError):
        return OVER_BUDGET
    return USAGE if isinstance(result.error, (ConfigError, InvalidTaskError, UnknownAgentError)) else FAILED


def result_row(result: AgentResult) -> Dict[str, object]:
    """Return the result as JSON has it."""
    return {
        "agent": result.agent_name,
        "success": result.success,
        "output": result.output,
        "errors": list(result.errors),
        "metadata": dict(result.metadata),
    }


def what_happened(result: AgentResult) -> str:
    """Return one line about an answer: where it came from, what it took and what it cost."""
    metadata = result.metadata
    tokens = f"{metadata.input_tokens:,} + {metadata.output_tokens:,} tokens of {metadata.model}"
    if metadata.cached:
        kind = "stale hit" if metadata.stale else "hit"
        age = f", {metadata.cache_age_seconds:.0f} s old" if metadata.cache_age_seconds is not None else ""
        line = f"{kind}{age}: {tokens}, {usd(metadata.saved_cost)} saved"
    else:
        line = f"miss: {tokens}, {usd(metadata.estimated_cost)}, {metadata.execution_time_ms / 1000:.1f} s"
        if metadata.prompt_cache_saved:
            line += f"; {usd(metadata.prompt_cache_saved)} saved by prompt caching"
    if metadata.suspicions:
        line += f"; suspicious: {', '.join(metadata.suspicions)}"
    return line + ("; cut short by max_tokens, so not stored" if metadata.truncated else "")


def usd(amount: Optional[float]) -> str:
    """Return an amount of money; the price of a model may be unknown."""
    if amount is None:
        return "price unknown"
    sign, size = "-" if amount < 0 else "", abs(amount)
    return f"{sign}${size:.6f}" if 0 < size < 0.01 else f"{sign}${size:.4f}"


def spending(orchestrator: AsyncAgentOrchestrator) -> str:
    """Return what an orchestrator has spent and saved, and what it might have spent."""
    totals, budget = orchestrator.totals, orchestrator.budget
    text = f"{usd(totals.usd_spent)} spent"
    if budget.max_usd is not None:
        text += f" of {usd(budget.max_usd)}"
        if budget.spent > totals.usd_spent + 1e-6:
            text += f", up to {usd(budget.spent)} with what may have been billed without an answer"
    text += f", {usd(totals.usd_saved)} saved"
    if totals.usd_saved_by_prompt_cache:
        text += f", {usd(totals.usd_saved_by_prompt_cache)} by prompt caching besides"
    return text
