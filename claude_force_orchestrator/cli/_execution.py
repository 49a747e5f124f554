"""What ``run`` and ``map`` share: how an orchestrator is made, and how a result reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional

from ._failure import FAILED, USAGE
from ._settings import DEFAULT_CONFIG

if TYPE_CHECKING:
    from .._orchestrator import AsyncAgentOrchestrator
    from .._result import AgentResult

__all__ = ["exit_code", "make_orchestrator", "result_row", "usd", "what_happened"]


def make_orchestrator(config: Optional[Path], *, timeout: Optional[float], **arguments: Any) -> AsyncAgentOrchestrator:
    """Return an orchestrator of the project at ``config``.

    :raises OrchestratorError: if the settings cannot be used.
    """
    from .._orchestrator import AsyncAgentOrchestrator

    if timeout is not None:
        arguments["timeout_seconds"] = timeout
    return AsyncAgentOrchestrator(config_path=config or DEFAULT_CONFIG, **arguments)


def exit_code(result: AgentResult) -> int:
    """Return 0 for an answer, 2 if the user has to change what was asked, 1 for a task that failed."""
    from .._errors import ConfigError, InvalidTaskError, UnknownAgentError

    if result.success:
        return 0
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
    if metadata.suspicions:
        line += f"; suspicious: {', '.join(metadata.suspicions)}"
    return line + ("; cut short by max_tokens, so not stored" if metadata.truncated else "")


def usd(amount: Optional[float]) -> str:
    """Return an amount of money; the price of a model may be unknown."""
    if amount is None:
        return "price unknown"
    return f"${amount:.6f}" if 0 < amount < 0.01 else f"${amount:.4f}"
