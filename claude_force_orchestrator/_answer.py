"""Answers, as they are kept in the cache."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, FrozenSet, Optional

from claude_force_cache import InvalidValueError

from ._errors import (
    AnswerError,
    EmptyAnswerError,
    IncompleteAnswerError,
    InvalidAnswerError,
    RefusedError,
)

__all__ = ["Answer", "AnswerCodec", "read_message"]

_COMPLETE: FrozenSet[Optional[str]] = frozenset({"end_turn", "stop_sequence"})
_TRUNCATED: FrozenSet[Optional[str]] = frozenset({"max_tokens", "model_context_window_exceeded"})
_WAITING: FrozenSet[Optional[str]] = frozenset({"tool_use", "pause_turn"})


@dataclass(frozen=True)
class Answer:
    """What Claude answered, and what it took.

    :param text: the text, all text blocks joined.
    :param model: the model that answered, as the API names it.
    :param stop_reason: the API's stop reason, or None if it gave none.
    :param input_tokens: prompt tokens that were neither read from nor written to the API's prompt cache.
    :param output_tokens: tokens of the answer, thinking included.
    :param cache_read_tokens: prompt tokens read from the API's prompt cache.
    :param cache_write_5m_tokens: prompt tokens written to it for five minutes.
    :param cache_write_1h_tokens: prompt tokens written to it for an hour.
    :param request_id: the API's id of the request, or None.
    :param agent_name: the agent that asked first.
    :param created: when the answer came, in seconds since 1970.
    """

    text: str
    model: str
    stop_reason: Optional[str]
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    request_id: Optional[str] = None
    agent_name: str = ""
    created: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, however they are priced."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def truncated(self) -> bool:
        """Whether a limit cut the answer short."""
        return self.stop_reason in _TRUNCATED

    @property
    def storable(self) -> bool:
        """Whether it may answer the same question again: it ended by itself, and says something."""
        return self.stop_reason in _COMPLETE and not _blank(self.text)

    def problem(self) -> Optional[AnswerError]:
        """Return why the answer is of no use, or None if it is of use.

        A truncated answer is of use: it was paid for, and :attr:`truncated` says what it is.
        """
        if self.stop_reason in _COMPLETE and not _blank(self.text):
            return None
        if self.stop_reason == "refusal":
            return RefusedError("the model declined to answer; rephrase the task, or choose another model")
        if self.stop_reason in _WAITING:
            return IncompleteAnswerError(
                f"the answer stopped with {self.stop_reason!r}, which agents without tools cannot continue"
            )
        if _blank(self.text):
            remedy = "raise max_tokens" if self.truncated else "rephrase the task"
            return EmptyAnswerError(f"the answer holds no text (stop reason {self.stop_reason!r}); {remedy}")
        return None


def _blank(text: str) -> bool:
    return not text or text.isspace()


_TYPES = {
    **dict.fromkeys((field.name for field in fields(Answer)), (int,)),
    "text": (str,),
    "model": (str,),
    "stop_reason": (str, type(None)),
    "request_id": (str, type(None)),
    "agent_name": (str,),
    "created": (int, float),
}


class AnswerCodec:
    """Turns answers into bytes and back: JSON in UTF-8, so that an entry can be read by eye."""

    schema = "claude-force/answer/1"
    immutable = True

    def encode(self, value: Answer) -> bytes:
        """Return the answer as JSON.

        :raises InvalidValueError: if the text holds lone surrogates, which no UTF-8 can carry.
        """
        try:
            return json.dumps(asdict(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidValueError(
                f"the answer holds a lone surrogate at character {error.start} and cannot be stored"
            ) from None

    def decode(self, data: bytes) -> Answer:
        """Return the answer.

        :raises ValueError: if ``data`` is not what :meth:`encode` writes.
        """
        table = json.loads(data)
        if not isinstance(table, dict) or table.keys() != _TYPES.keys():
            raise ValueError("not an answer: the fields differ")
        for name, types in _TYPES.items():
            if not isinstance(table[name], types) or isinstance(table[name], bool):
                raise ValueError(f"not an answer: {name} is a {type(table[name]).__name__}")
        return Answer(**table)


def read_message(message: Any, *, agent_name: str, created: float) -> Answer:
    """Return the answer that a ``Message`` of the SDK holds.

    The SDK builds a ``Message`` out of whatever a server replies without checking it, hence the checks here.

    :raises InvalidAnswerError: if it is not a message in the API's format.
    """
    usage = getattr(message, "usage", None)
    content = getattr(message, "content", None)
    model = getattr(message, "model", None)
    if usage is None or not isinstance(content, list) or not isinstance(model, str):
        raise InvalidAnswerError(
            "the reply is not a message in the API's format; check that the base URL is that of a Messages API"
        )
    texts = [block.text for block in content if getattr(block, "type", None) == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidAnswerError("the reply holds a text block without text")
    stop_reason = getattr(message, "stop_reason", None)
    request_id = getattr(message, "_request_id", None)
    by_life = getattr(usage, "cache_creation", None)
    written = _tokens(usage, "cache_creation_input_tokens")
    written_1h = min(_tokens(by_life, "ephemeral_1h_input_tokens"), written)
    return Answer(
        text="".join(texts),
        model=model,
        stop_reason=stop_reason if isinstance(stop_reason, str) else None,
        input_tokens=_tokens(usage, "input_tokens"),
        output_tokens=_tokens(usage, "output_tokens"),
        cache_read_tokens=_tokens(usage, "cache_read_input_tokens"),
        cache_write_5m_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        request_id=request_id if isinstance(request_id, str) else None,
        agent_name=agent_name,
        created=created,
    )


def _tokens(usage: Any, name: str) -> int:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
