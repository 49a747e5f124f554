"""Requests: everything that Claude is asked, resolved before anything is looked up or sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

from claude_force_cache import Cache, CacheError, Digest, KeyPart, digest

from ._answer import Parts
from ._context import PREAMBLE, Context, fence
from ._project import Definition

__all__ = [
    "MESSAGES_PATH",
    "Headers",
    "Request",
    "RequestTemplate",
    "account_key",
    "blind",
    "custom_headers",
    "describe",
    "fixed_digest",
    "significant_headers",
]

MESSAGES_PATH = "/v1/messages"
"""Where the Messages API is, below the base URL."""

Headers = Tuple[Tuple[str, str], ...]

_FORMAT = "messages/2"
_SHOWN = frozenset({"max_tokens", "model", "stream", "temperature", "top_k", "top_p"})
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
    """Return what a request consists of: settings as they are, digests of all else. See :func:`blind`."""
    named: List[Tuple[str, Any]] = [("endpoint", url), *((f"header {name}", value) for name, value in headers)]
    named.extend((name, body[name]) for name in sorted(body))
    return tuple((name, _brief(name, value)) for name, value in named)


async def blind(parts: Parts, cache: Optional[Cache[Any]]) -> Parts:
    """Return what is stored of parts: for each digest one under the cache's secret.

    Equal texts still have equal digests, and nobody without the secret can tell whether a text is what he guesses.

    :returns: nothing if there is no cache, or it is closed.
    """
    if cache is None:
        return ()
    try:
        return tuple(
            [
                (name, value if name in _SHOWN else (await cache.stored_key(("part", name, value)))[:_DIGITS_SHOWN])
                for name, value in parts
            ]
        )
    except CacheError:
        return ()


def _brief(name: str, value: Any) -> str:
    if name in _SHOWN and not isinstance(value, (list, dict)):
        text = value if isinstance(value, str) else json.dumps(value)
        return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return digest(value).hex()


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
    :ivar fenced_digest: the same for tasks with context, of which the system prompt tells.
    """

    agent_name: str
    endpoint: str
    model: str
    max_tokens: int
    temperature: Optional[float]
    definition: Definition
    headers: Headers = ()
    digest: Digest = field(init=False, repr=False)
    fenced_digest: Digest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, fenced in (("digest", False), ("fenced_digest", True)):
            object.__setattr__(self, name, fixed_digest(self.url, self.headers, self.fixed(fenced=fenced)))

    @property
    def url(self) -> str:
        """Where the request goes."""
        return self.endpoint + MESSAGES_PATH

    @cached_property
    def parts(self) -> Parts:
        """What the requests consist of but for task and context, see :func:`describe`."""
        body = self.fixed()
        del body["system"]
        definition, *contract = self.definition.blocks
        return describe(self.url, self.headers, {**body, "definition": definition, "contract": contract})

    def fixed(self, *, fenced: bool = False) -> Dict[str, Any]:
        """Return the body without its messages. What is sent and what the key covers are both made of it.

        :param fenced: whether there is context, and so something to say of it.
        """
        blocks = (*self.definition.blocks, PREAMBLE) if fenced else self.definition.blocks
        body: Dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": [{"type": "text", "text": block} for block in blocks],
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return body


class Request(NamedTuple):
    """A whole request.

    :param template: all but the task.
    :param task: the user's message, unaltered.
    :param context: data that it is sent along with.
    :param variant: which of several answers to the same request is meant, from 0.
    """

    template: RequestTemplate
    task: str
    context: Tuple[Context, ...] = ()
    variant: int = 0

    @property
    def messages(self) -> List[Dict[str, Any]]:
        """The messages of the body."""
        content: Union[str, List[Dict[str, str]]] = self.task
        if self.context:
            content = [{"type": "text", "text": text} for text in fence(self.context, self.task)]
        return [{"role": "user", "content": content}]

    @property
    def most_prompt_tokens(self) -> int:
        """A bound of the prompt's length: its bytes, since no token stands for less than one.

        What JSON adds to the texts is more than the API adds to the tokens.
        """
        body = {**self.template.fixed(fenced=bool(self.context)), "messages": self.messages}
        return len(json.dumps(body))

    @property
    def key(self) -> Tuple[KeyPart, ...]:
        """The key of the answer."""
        template = self.template
        key = (template.fenced_digest if self.context else template.digest, self.messages)
        return (*key, self.variant) if self.variant else key

    @property
    def parts(self) -> Parts:
        """What the request consists of, as people who run agents see it."""
        context = [[item.kind, item.source, item.text] for item in self.context]
        return (*self.template.parts, ("context", _brief("context", context)), ("task", _brief("task", self.task)))

    def arguments(self, *, mark: bool = False) -> Dict[str, Any]:
        """Return the arguments of ``messages.create``.

        A sampling parameter travels in ``extra_body``: SDKs from 1.0 on no longer have arguments for them.

        :param mark: whether the API is asked to remember the definition in its own prompt cache. That changes the
            price, not the answer, so the key does not know of it.
        """
        fixed = self.template.fixed(fenced=bool(self.context))
        if mark:
            # The last block of the definition: what follows depends on whether there is context.
            fixed["system"][len(self.template.definition.blocks) - 1]["cache_control"] = {"type": "ephemeral"}
        extra = {name: fixed.pop(name) for name in ("temperature",) if name in fixed}
        return {**fixed, "messages": self.messages, **({"extra_body": extra} if extra else {})}
