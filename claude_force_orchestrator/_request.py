"""Requests: everything that Claude is asked, resolved before anything is looked up or sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, NamedTuple, Optional, Tuple

from claude_force_cache import Digest, digest

from ._project import Definition

__all__ = ["Request", "RequestTemplate"]

_FORMAT = "messages/1"


@dataclass(frozen=True)
class RequestTemplate:
    """A request without its task: what stays the same from one task of an agent to the next.

    :param agent_name: the agent. Not part of the key: the same question asked by another name has the same answer.
    :param endpoint: the base URL, part of the key so that a stand-in's answers are never taken for Claude's.
    :param model: the model's id.
    :param max_tokens: the limit of the answer, in tokens.
    :param temperature: None if it is not sent.
    :param definition: the system prompt.
    :ivar digest: the digest of all of these but the agent, computed once.
    """

    agent_name: str
    endpoint: str
    model: str
    max_tokens: int
    temperature: Optional[float]
    definition: Definition
    digest: Digest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fixed = {**self._parameters(), "system": self.definition.digest}
        object.__setattr__(self, "digest", digest((_FORMAT, self.endpoint, fixed)))

    def arguments(self, task: str) -> Dict[str, Any]:
        """Return the arguments of ``messages.create``.

        A sampling parameter travels in ``extra_body``: SDKs from 1.0 on no longer have arguments for them.
        """
        parameters = self._parameters()
        extra = {name: parameters.pop(name) for name in ("temperature",) if name in parameters}
        return {
            **parameters,
            "system": [{"type": "text", "text": block} for block in self.definition.blocks],
            "messages": [{"role": "user", "content": task}],
            **({"extra_body": extra} if extra else {}),
        }

    def _parameters(self) -> Dict[str, Any]:
        """Return what is sent besides texts, under the API's names. The key covers all of it."""
        parameters: Dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        if self.temperature is not None:
            parameters["temperature"] = self.temperature
        return parameters


class Request(NamedTuple):
    """A whole request.

    :param template: all but the task.
    :param task: the user's message, unaltered.
    """

    template: RequestTemplate
    task: str

    @property
    def key(self) -> Tuple[Digest, str]:
        """The key of the answer."""
        return (self.template.digest, self.task)

    def arguments(self) -> Dict[str, Any]:
        """Return the arguments of ``messages.create``."""
        return self.template.arguments(self.task)
