"""The errors of the orchestrator.

::

    OrchestratorError
    |-- ConfigError (also a ValueError)       arguments or environment that cannot be used; raised by the constructor
    |   |-- ProjectError                      claude.json, or a file that it names, cannot be used
    |   `-- WorkflowError                     there is no such workflow, or it cannot be run as it is defined
    |-- InvalidTaskError (also a ValueError)  an argument of one execution cannot be used
    |-- UnknownAgentError (also a LookupError)
    |-- DeadlineExceededError (also a TimeoutError)  no result within ``deadline_seconds``
    |-- SuspiciousTaskError                   the task looks like an attack, and ``on_suspicion`` is ``refuse``
    |-- BudgetError                           the budget does not allow the call; nothing was sent
    |-- StoppedError                          it needed a call after :meth:`AsyncAgentOrchestrator.stop`; not sent
    |-- NotCachedError                        ``cache="only-if-cached"`` and there is no entry
    |-- AnswerError                           the API answered, and the answer is of no use; it was paid for
    |   |-- RefusedError                      the model declined
    |   |-- EmptyAnswerError                  no text
    |   |-- IncompleteAnswerError             the model waits for something (a tool, another turn)
    |   `-- InvalidAnswerError                not an answer in the API's format
    |-- CallError                             the API did not answer the call
    |   |-- AuthenticationError               no key, or the key is not accepted (401)
    |   |-- PermissionDeniedError             the key may not do this (403)
    |   |-- BadRequestError                   the request is not accepted (400, 404, 413, 422)
    |   |-- RateLimitError                    too many requests, after all retries (429), or told to wait too long
    |   |   `-- SpendLimitError               the account's spend limit is reached; not retried
    |   |-- OverloadedError                   overloaded, after all retries (529)
    |   |-- ServerError                       a fault of the server, after all retries (408, 409, 5xx)
    |   |-- CallTimeoutError                  no complete answer in time, after all retries
    |   `-- ConnectionFailedError             the API cannot be reached, after all retries
    `-- InternalError                         a defect of this package

Constructors raise :class:`ConfigError` and :class:`ProjectError`. The others arrive in
:attr:`AgentResult.error`, because one task's failure must not cost a batch its other answers; with
``raise_errors=True``, ``execute_agent`` raises them instead, and batches still return them. A
:class:`CallError` has the SDK's own exception as ``__cause__``. Every message is one line that names the cause
and the remedy, and none contains an API key.
"""

from __future__ import annotations

from typing import Optional, Sequence

__all__ = [
    "AnswerError",
    "AuthenticationError",
    "BadRequestError",
    "BudgetError",
    "CallError",
    "CallTimeoutError",
    "ConfigError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "EmptyAnswerError",
    "IncompleteAnswerError",
    "InternalError",
    "InvalidAnswerError",
    "InvalidTaskError",
    "NotCachedError",
    "OrchestratorError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProjectError",
    "RateLimitError",
    "RefusedError",
    "ServerError",
    "SpendLimitError",
    "StoppedError",
    "SuspiciousTaskError",
    "UnknownAgentError",
    "WorkflowError",
]


class OrchestratorError(Exception):
    """Base class of every error of this package."""


class ConfigError(OrchestratorError, ValueError):
    """Raised when an argument of a constructor or a variable of the environment cannot be used."""


class ProjectError(ConfigError):
    """Raised when claude.json, or a file that it names, is missing, malformed or outside the project."""


class WorkflowError(ConfigError):
    """Raised when there is no such workflow, or it cannot be run as it is defined. Nothing was sent."""


class InvalidTaskError(OrchestratorError, ValueError):
    """The error of a task, agent name, model or limit that cannot be used; nothing was sent."""


class UnknownAgentError(OrchestratorError, LookupError):
    """The error of an agent that claude.json does not list.

    :param name: the name that was asked for.
    :param near: names that resemble it, best first.
    :param known: how many agents the project has.
    """

    def __init__(self, name: str, near: Sequence[str], known: int) -> None:
        super().__init__(name, near, known)
        self.name = name
        self.near = tuple(near)
        self.known = known

    def __str__(self) -> str:
        if self.near:
            return f"there is no agent {self.name!r}; did you mean {' or '.join(map(repr, self.near))}?"
        return (
            f"there is no agent {self.name!r} among the {self.known} in claude.json; add it there, or name one of them"
        )


class DeadlineExceededError(OrchestratorError, TimeoutError):
    """The error of a task that had no result when its deadline came.

    :param seconds: the deadline, from the start of the execution.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"no result within {self.seconds:g} s, waiting and retries included; raise deadline_seconds"


class SuspiciousTaskError(OrchestratorError):
    """The error of a task that was not sent, or not answered from the cache, because of what it or its context says.

    :param suspicions: what was found, such as ``memory:override-instructions``.
    """

    def __init__(self, suspicions: Sequence[str]) -> None:
        super().__init__(suspicions)
        self.suspicions = tuple(suspicions)

    def __str__(self) -> str:
        found = ", ".join(self.suspicions)
        return f"suspicious text ({found}); look at it, and send it with on_suspicion='report' if it is meant so"


class StoppedError(OrchestratorError):
    """The error of a task that would have needed a call when no more were to be begun. Nothing was paid for it."""

    def __init__(self) -> None:
        super().__init__("stopped before it was asked; run it again")


class NotCachedError(OrchestratorError):
    """The error of a task that may only be answered from the cache, and is not in it."""


class BudgetError(OrchestratorError):
    """The error of a call that ``max_usd`` does not allow: it may cost more than is left, or its price is not known.

    Nothing was sent, unless an attempt before it failed.
    """


class AnswerError(OrchestratorError):
    """Base class of the errors of answers that came, and are of no use."""


class RefusedError(AnswerError):
    """The error of a task that the model declined to answer (stop reason ``refusal``)."""


class EmptyAnswerError(AnswerError):
    """The error of an answer without text."""


class IncompleteAnswerError(AnswerError):
    """The error of an answer that ended waiting for something that is not offered here."""


class InvalidAnswerError(AnswerError):
    """The error of a reply that is not an answer in the API's format."""


class CallError(OrchestratorError):
    """Base class of the errors of calls that the API did not answer.

    :param message: one line.
    :param status: the HTTP status of the last attempt, or None if there was none.
    :param request_id: the API's id of the last attempt, or None.
    :param attempts: how many requests were sent.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        request_id: Optional[str] = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.attempts = attempts


class AuthenticationError(CallError):
    """The error of a call without a key, or with a key that is not accepted."""


class PermissionDeniedError(CallError):
    """The error of a call that the key does not permit."""


class BadRequestError(CallError):
    """The error of a request that the API does not accept, and would not accept another time."""


class RateLimitError(CallError):
    """The error of a call that still met a rate limit after all retries."""


class SpendLimitError(RateLimitError):
    """The error of a call above the account's spend limit. Waiting does not help, so it is not retried."""


class OverloadedError(CallError):
    """The error of a call that still found the API overloaded after all retries."""


class ServerError(CallError):
    """The error of a call that still met a fault of the server after all retries."""


class CallTimeoutError(CallError):
    """The error of a call whose every attempt took longer than ``timeout_seconds``."""


class ConnectionFailedError(CallError):
    """The error of a call that could not reach the API, or lost the connection, after all retries."""


class InternalError(OrchestratorError):
    """The error of a task that met a defect of this package; the cause is logged with its traceback."""
