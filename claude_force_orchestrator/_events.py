"""Events of an orchestrator: pluggy hooks, like those of the cache. Without a listener they cost nothing.

A listener is any object with methods named like those of :class:`OrchestratorEvents`, marked with the cache's
``hookimpl``, each taking the arguments that it wants. They are called in the event loop of the execution that
they tell about, and must not block. An error that a listener raises is logged and goes no further.
"""

from __future__ import annotations

from typing import Tuple

from claude_force_cache._events import Listeners
from claude_force_cache._plugins import hookspec

__all__ = ["OrchestratorEvents", "orchestrator_listeners"]


class OrchestratorEvents:
    """The hooks. ``family`` is a family of models, as :func:`model_family` names it."""

    @hookspec
    def claude_force_orchestrator_limit(self, family: str, limit: int, reason: str) -> None:
        """Call when a family may have ``limit`` calls under way from now on; ``reason``: growth, or rate limit."""

    @hookspec
    def claude_force_orchestrator_pause(self, family: str, seconds: float) -> None:
        """Call when a rate limit stops the calls of a family for so many seconds."""

    @hookspec
    def claude_force_orchestrator_suspicion(self, agent_name: str, suspicions: Tuple[str, ...], refused: bool) -> None:
        """Call when a task or its context resembles an attempt to give orders; ``refused``: it was not sent."""


def orchestrator_listeners() -> Listeners:
    """Return what hands events to the listeners of one orchestrator."""
    return Listeners(OrchestratorEvents, "claude_force_orchestrator", "an orchestrator")
