"""Answers: what a reply of the Messages API says, and how it is kept in the cache."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Tuple

from claude_force_cache import Cache, InvalidValueError

from ._errors import (
    AnswerError,
    ConfigError,
    EmptyAnswerError,
    IncompleteAnswerError,
    InvalidAnswerError,
    RefusedError,
)

__all__ = ["EVENT_STREAM", "Answer", "AnswerCodec", "Parts", "check_codec", "read_answer"]

EVENT_STREAM = "text/event-stream"
"""The content type of a streamed reply."""

Parts = Tuple[Tuple[str, str], ...]
"""The names of the parts of a request, each with its value where that is short, else a short digest of it."""

_COMPLETE: FrozenSet[Optional[str]] = frozenset({"end_turn", "stop_sequence"})
_TRUNCATED: FrozenSet[Optional[str]] = frozenset({"max_tokens", "model_context_window_exceeded"})
_WAITING: FrozenSet[Optional[str]] = frozenset({"tool_use", "pause_turn"})
_THINKING = frozenset({"thinking", "redacted_thinking"})
_ERROR_EVENT = re.compile(rb"\nevent: ?error\s")


@dataclass(frozen=True)
class Answer:
    """What Claude answered, what it took, and the reply that says so, as it came.

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
    :param thinking: whether it holds thinking, which is bound to the account that it was made for.
    :param body: the reply's body: a message in JSON, or the recorded event stream of one.
    :param content_type: the body's media type, in lower case, without parameters.
    :param api_version: the ``anthropic-version`` of the request, or None if it is not known.
    :param account: a keyed digest of the credentials that the answer was made for, or None if it is not known.
    :param parts: what the request consisted of.
    :param suspicions: what was suspicious about the texts of the request.
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
    thinking: bool = False
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""
    api_version: Optional[str] = None
    account: Optional[str] = None
    parts: Parts = ()
    suspicions: Tuple[str, ...] = ()

    @property
    def cache_write_tokens(self) -> int:
        """Prompt tokens written to the API's prompt cache, for however long."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, however they are priced."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

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


class AnswerCodec:
    """Turns answers into bytes and back: a line of JSON on what came with the reply, then its body as it came."""

    schema = "claude-force/answer/2"
    immutable = True

    def encode(self, value: Answer) -> bytes:
        """Return the reply that the answer was read from, with what is known of it.

        :raises InvalidValueError: if the answer was not read from a reply, see :func:`read_answer`.
        """
        if not value.body:
            raise InvalidValueError("the answer has no body: only answers that were read from a reply can be stored")
        line = json.dumps({name: getattr(value, name) for name in _KEPT}, separators=(",", ":"))
        return b"%s\n%s" % (line.encode(), value.body)

    def decode(self, data: bytes) -> Answer:
        """Return the answer.

        :raises ValueError: if ``data`` is not what :meth:`encode` writes.
        """
        line, _, body = data.partition(b"\n")
        try:
            kept = json.loads(line)
        except RecursionError:
            raise ValueError("not an answer: nested too deeply") from None
        if not isinstance(kept, dict) or kept.keys() != _KEPT.keys():
            raise ValueError("not an answer: the fields differ")
        for name, types in _KEPT.items():
            if not isinstance(kept[name], types) or isinstance(kept[name], bool):
                raise ValueError(f"not an answer: {name} is a {type(kept[name]).__name__}")
        if not all(isinstance(part, list) and list(map(type, part)) == [str, str] for part in kept["parts"]):
            raise ValueError("not an answer: parts are no pairs of texts")
        if not all(isinstance(suspicion, str) for suspicion in kept["suspicions"]):
            raise ValueError("not an answer: suspicions are no texts")
        kept["parts"] = tuple(map(tuple, kept["parts"]))
        kept["suspicions"] = tuple(kept["suspicions"])
        try:
            return read_answer(body, **kept)
        except InvalidAnswerError as error:
            raise ValueError(str(error)) from None


def check_codec(cache: Cache[Any]) -> None:
    """Return if a cache keeps answers.

    :raises ConfigError: if it was opened with another codec, so that it could store none.
    """
    if cache.codec.schema != AnswerCodec.schema:
        raise ConfigError(f"{cache!r} does not keep answers: open it with codec=AnswerCodec()")


_KEPT: Mapping[str, Tuple[type, ...]] = {
    "content_type": (str,),
    "request_id": (str, type(None)),
    "api_version": (str, type(None)),
    "account": (str, type(None)),
    "agent_name": (str,),
    "created": (int, float),
    "parts": (list,),
    "suspicions": (list,),
}
"""What is stored beside the body, since the body does not say it."""


def read_answer(
    body: bytes,
    *,
    content_type: str,
    request_id: Optional[str] = None,
    api_version: Optional[str] = None,
    account: Optional[str] = None,
    agent_name: str = "",
    created: float = 0.0,
    parts: Parts = (),
    suspicions: Tuple[str, ...] = (),
) -> Answer:
    """Return the answer that the body of a reply holds.

    :raises InvalidAnswerError: if it is not a whole message in the API's format: no message at all, or an event
        stream that ended early or with an error.
    """
    try:
        message = _read_events(body) if content_type == EVENT_STREAM else json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _not_a_message(f" ({error})") from None
    if not isinstance(message, dict):
        raise _not_a_message()
    usage, content, model = message.get("usage"), message.get("content"), message.get("model")
    if not isinstance(usage, dict) or not isinstance(content, list) or not isinstance(model, str):
        raise _not_a_message()
    texts: List[str] = []
    thinking = False
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            if not isinstance(block.get("text"), str):
                raise InvalidAnswerError("the reply holds a text block without text")
            texts.append(block["text"])
        elif isinstance(kind, str) and kind in _THINKING:
            thinking = True
    stop_reason, by_life = message.get("stop_reason"), usage.get("cache_creation")
    written = _tokens(usage, "cache_creation_input_tokens")
    written_1h = min(_tokens(by_life, "ephemeral_1h_input_tokens"), written) if isinstance(by_life, dict) else 0
    return Answer(
        text="".join(texts),
        model=model,
        stop_reason=stop_reason if isinstance(stop_reason, str) else None,
        input_tokens=_tokens(usage, "input_tokens"),
        output_tokens=_tokens(usage, "output_tokens"),
        cache_read_tokens=_tokens(usage, "cache_read_input_tokens"),
        cache_write_5m_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        request_id=request_id,
        agent_name=agent_name,
        created=created,
        thinking=thinking,
        body=body,
        content_type=content_type,
        api_version=api_version,
        account=account,
        parts=parts,
        suspicions=suspicions,
    )


def _not_a_message(reason: str = "") -> InvalidAnswerError:
    return InvalidAnswerError(
        f"the reply is not a message in the API's format{reason}; check that the base URL is that of a Messages API"
    )


def _tokens(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _read_events(body: bytes) -> Dict[str, Any]:
    """Return the message that an event stream tells, as far as :func:`read_answer` looks at it.

    :raises ValueError: if it is not the whole of a message.
    """
    if _ERROR_EVENT.search(body):  # also after the message, since each replay would raise it
        raise ValueError("the event stream reports an error")
    message: Optional[Dict[str, Any]] = None
    blocks: Dict[Any, Dict[str, Any]] = {}
    texts: Dict[Any, List[str]] = {}
    try:
        for event in _events(body):
            kind = event["type"]
            if kind == "content_block_delta":
                if event["delta"]["type"] == "text_delta":
                    texts[event["index"]].append(event["delta"]["text"])
            elif kind == "message_start":
                message = dict(event["message"])
            elif kind == "content_block_start":
                block = blocks[event["index"]] = dict(event["content_block"])
                texts[event["index"]] = [block["text"]] if block.get("type") == "text" else []
            elif kind == "message_delta" and message is not None:
                message.update(event["delta"])
                reported = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
                message["usage"] = {**message["usage"], **reported}
            elif kind == "error":
                raise ValueError("the event stream reports an error")
            elif kind == "message_stop" and message is not None:
                for index, block in blocks.items():
                    if block.get("type") == "text":
                        block["text"] = "".join(texts[index])
                message["content"] = list(blocks.values())
                return message
    except (KeyError, TypeError, AttributeError):
        raise ValueError("an event is not in the API's format") from None
    raise ValueError("the event stream ended before message_stop")


def _events(body: bytes) -> Iterator[Dict[str, Any]]:
    """Iterate over the data of the events, whose ``type`` repeats what the event is called."""
    data: List[bytes] = []
    for line in body.splitlines():  # of bytes: text would also be split at separators that JSON may hold
        if line.startswith(b"data:"):
            data.append(line[5:])
        elif not line and data:
            yield json.loads(b"\n".join(data))
            data = []
