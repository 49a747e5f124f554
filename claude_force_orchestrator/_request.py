"""Requests: everything that Claude is asked, resolved before anything is looked up or sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from claude_force_cache import Digest, KeyPart, digest

from ._answer import Parts
from ._project import Definition

__all__ = [
    "MESSAGES_PATH",
    "Headers",
    "Request",
    "RequestTemplate",
    "account_key",
    "custom_headers",
    "describe",
    "fixed_digest",
    "significant_headers",
]

MESSAGES_PATH = "/v1/messages"
"""Where the Messages API is, below the base URL."""

Headers = Tuple[Tuple[str, str], ...]

_FORMAT = "messages/2"
_SCALARS = (type(None), bool, int, float, str)
_LONGEST_SHOWN = 60
_DIGITS_SHOWN = 12

_INSIGNIFICANT = frozenset(
    {
        # How the request travels, and who makes it. Another account gets the same answer, but for thinking.
        *("accept", "accept-encoding", "accept-language", "connection", "content-encoding", "content-length"),
        *("content-type", "cookie", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
        *("authorization", "proxy-authorization", "x-api-key", "user-agent", "idempotency-key"),
        # Which request of many it is.
        *("baggage", "traceparent", "tracestate", "x-request-id"),
        # Compared where an entry is read: whoever has no SDK loaded does not know the version it would send.
        "anthropic-version",
        "x-claude-force-cache",
    }
)
_INSIGNIFICANT_PREFIX = "x-stainless-"


def significant_headers(headers: Iterable[Tuple[str, str]]) -> Headers:
    """Return the headers that are part of the key, sorted, names in lower case: all that are not known to be none."""
    named = ((name.lower(), value) for name, value in headers)
    return tuple(
        sorted(
            (name, value)
            for name, value in named
            if name not in _INSIGNIFICANT and not name.startswith(_INSIGNIFICANT_PREFIX)
        )
    )


def custom_headers(environ: Mapping[str, str]) -> Headers:
    """Return the headers that the SDK takes out of ``ANTHROPIC_CUSTOM_HEADERS``, lines of ``name: value``."""
    lines = environ.get("ANTHROPIC_CUSTOM_HEADERS", "").split("\n")
    pairs = (line.partition(":") for line in lines if ":" in line)
    return significant_headers({name.strip(): value.strip() for name, _, value in pairs}.items())


def account_key(headers: Mapping[str, str]) -> Optional[Tuple[str, str]]:
    """Return what identifies the account of a request, or None.

    It holds the credentials: only its keyed digest, which :meth:`Cache.stored_key` makes, may be stored.

    :param headers: the request's headers, names looked up whatever their case, or in lower case.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    credentials = token.strip() or scheme or headers.get("x-api-key", "")
    return ("account", credentials) if credentials else None


def fixed_digest(url: str, headers: Headers, fixed: Mapping[str, KeyPart]) -> Digest:
    """Return the first part of the key of a request; the second are its messages.

    :param url: the whole URL, query included.
    :param headers: the significant ones.
    :param fixed: the body without its messages. A field that is not known here counts like any other.
    :raises InvalidKeyError: if the body holds what keys cannot.
    """
    return digest((_FORMAT, url, headers, fixed))


def describe(url: str, headers: Headers, body: Mapping[str, Any]) -> Parts:
    """Return what a request consists of, to be compared with another one: short values, and digests of long ones."""
    named: List[Tuple[str, Any]] = [("url", url), *((f"header {name}", value) for name, value in headers)]
    named.extend((name, body[name]) for name in sorted(body))
    return tuple((name, _brief(value)) for name, value in named)


def _brief(value: Any) -> str:
    if isinstance(value, _SCALARS):
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) <= _LONGEST_SHOWN and text.isprintable():
            return text
    return f"sha256:{digest(value).hex()[:_DIGITS_SHOWN]}"


@dataclass(frozen=True)
class RequestTemplate:
    """A request without its task: what stays the same from one task of an agent to the next.

    :param agent_name: the agent. Not part of the key: the same question asked by another name has the same answer.
    :param endpoint: the base URL, part of the key so that a stand-in's answers are never taken for Claude's.
    :param model: the model's id.
    :param max_tokens: the limit of the answer, in tokens.
    :param temperature: None if it is not sent.
    :param definition: the system prompt.
    :param headers: the significant ones that the SDK sends besides, see :func:`custom_headers`.
    :ivar digest: the first part of the key, computed once: all of these but the agent.
    """

    agent_name: str
    endpoint: str
    model: str
    max_tokens: int
    temperature: Optional[float]
    definition: Definition
    headers: Headers = ()
    digest: Digest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", fixed_digest(self.url, self.headers, self.fixed()))

    @property
    def url(self) -> str:
        """Where the request goes."""
        return self.endpoint + MESSAGES_PATH

    def fixed(self) -> Dict[str, Any]:
        """Return the body without its messages. What is sent and what the key covers are both made of it."""
        body: Dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": [{"type": "text", "text": block} for block in self.definition.blocks],
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return body


class Request(NamedTuple):
    """A whole request.

    :param template: all but the task.
    :param task: the user's message, unaltered.
    """

    template: RequestTemplate
    task: str

    @property
    def messages(self) -> List[Dict[str, Any]]:
        """The messages of the body."""
        return [{"role": "user", "content": self.task}]

    @property
    def key(self) -> Tuple[Digest, KeyPart]:
        """The key of the answer."""
        return (self.template.digest, self.messages)

    @property
    def parts(self) -> Parts:
        """What the request consists of."""
        template = self.template
        return describe(template.url, template.headers, {**template.fixed(), "messages": self.messages})

    def arguments(self) -> Dict[str, Any]:
        """Return the arguments of ``messages.create``.

        A sampling parameter travels in ``extra_body``: SDKs from 1.0 on no longer have arguments for them.
        """
        fixed = self.template.fixed()
        extra = {name: fixed.pop(name) for name in ("temperature",) if name in fixed}
        return {**fixed, "messages": self.messages, **({"extra_body": extra} if extra else {})}
