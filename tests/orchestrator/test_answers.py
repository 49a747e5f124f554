"""Which answers are of use, which are kept, and how they are encoded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import InvalidValueError
from claude_force_orchestrator import (
    Answer,
    AnswerCodec,
    AsyncAgentOrchestrator,
    EmptyAnswerError,
    IncompleteAnswerError,
    InvalidAnswerError,
    RefusedError,
)
from claude_force_orchestrator._answer import EVENT_STREAM, read_answer


def _twice(run: Any) -> Any:
    """Return the results of the same task asked twice, and the totals."""

    async def ask(it: AsyncAgentOrchestrator) -> Any:
        first = await it.execute_agent("code-reviewer", "x")
        return first, await it.execute_agent("code-reviewer", "x"), it.totals

    return run(ask)


@pytest.mark.parametrize("stop_reason", ["end_turn", "stop_sequence"])
def test_a_complete_answer_is_kept(run: Any, api: Any, stop_reason: str) -> None:
    api.says(api.reply(api.message(stop_reason=stop_reason)))
    first, again, _ = _twice(run)
    assert (first.success, again.metadata.cached, again.metadata.stop_reason) == (True, True, stop_reason)


@pytest.mark.parametrize("stop_reason", ["max_tokens", "model_context_window_exceeded"])
def test_a_truncated_answer_is_returned_as_such_and_not_kept(run: Any, api: Any, stop_reason: str) -> None:
    api.says(api.reply(api.message("half", stop_reason=stop_reason)), "whole")
    first, again, _ = _twice(run)
    assert (first.success, first.output, first.metadata.truncated) == (True, "half", True)
    assert (again.output, again.metadata.cached, again.metadata.truncated) == ("whole", False, False)


@pytest.mark.parametrize("stop_reason", ["some_new_reason", None])
def test_an_answer_that_stopped_for_an_unknown_reason_is_returned_and_not_kept(
    run: Any, api: Any, stop_reason: Optional[str]
) -> None:
    api.default = api.reply(api.message(stop_reason=stop_reason))
    first, again, _ = _twice(run)
    assert (first.success, first.output, again.metadata.cached) == (True, "A good answer.", False)


@pytest.mark.parametrize(
    ("text", "stop_reason", "error"),
    [
        ("", "refusal", RefusedError),
        ("I would rather not.", "refusal", RefusedError),
        ("", "end_turn", EmptyAnswerError),
        (" \n", "stop_sequence", EmptyAnswerError),
        ("", "max_tokens", EmptyAnswerError),
        ("Let me see.", "tool_use", IncompleteAnswerError),
        ("", "pause_turn", IncompleteAnswerError),
    ],
)
def test_an_answer_of_no_use_is_a_failure_that_was_paid_for_and_is_not_kept(
    run: Any, api: Any, text: str, stop_reason: str, error: type
) -> None:
    api.default = api.reply(api.message(text, stop_reason=stop_reason))
    first, again, totals = _twice(run)
    for result in (first, again):
        assert not result.success
        assert type(result.error) is error
        assert result.output == ""
        assert result.errors == (str(result.error),)
        assert result.metadata.estimated_cost == pytest.approx(0.0002)
        assert (result.metadata.cached, result.metadata.stop_reason) == (False, stop_reason)
    assert len(api.requests) == 2
    assert (totals.tasks, totals.failures, totals.calls) == (2, 2, 2)
    assert totals.usd_spent == pytest.approx(0.0004)


def test_an_answer_is_the_text_of_all_its_text_blocks(run: Any, api: Any) -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "one "},
        {"type": "text", "text": "two"},
    ]
    api.says(api.reply(api.message(content=blocks)))
    first, again, _ = _twice(run)
    assert first.output == again.output == "one two"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b"",
        b"\xff\xfe",
        b'{"model": 1, "content": [], "usage": {}}',
        b'{"model": "m", "content": "text", "usage": {}}',
        b'{"model": "m", "content": [{"type": "text", "text": 1}], "usage": {"input_tokens": 1}}',
        b'{"model": "m", "content": [{"type": "text"}], "usage": {"input_tokens": 1}}',
    ],
)
def test_a_reply_that_is_no_message_is_a_failed_task(run: Any, api: Any, body: bytes) -> None:
    api.says(api.reply(body))
    result = run(lambda it: it.execute_agent("code-reviewer", "x"))
    assert isinstance(result.error, InvalidAnswerError), result.error
    assert len(api.requests) == 1


def test_a_page_that_is_no_api_is_a_failed_task(run: Any, api: Any) -> None:
    api.says(api.reply(b"<html>hello</html>", headers={"content-type": "text/html"}))
    result = run(lambda it: it.execute_agent("code-reviewer", "x"))
    assert isinstance(result.error, InvalidAnswerError), result.error
    assert "base URL" in result.errors[0]


def test_an_answer_with_a_lone_surrogate_is_kept_as_it_came(run: Any, api: Any) -> None:
    api.says(api.reply(api.message("\ud800")), "another")
    first, again, _ = _twice(run)
    assert (first.output, again.output, again.metadata.cached) == ("\ud800", "\ud800", True)


def test_an_answer_that_is_too_large_for_the_cache_is_not_lost(make: Any, run: Any, api: Any) -> None:
    api.default = api.reply(api.message("".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))))
    orchestrator = make(cache="memory://?max_bytes=10000&compress=off")

    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return [await it.execute_agent("code-reviewer", "x") for _ in range(2)]

    results = run(ask, orchestrator)
    assert [(result.success, result.metadata.cached) for result in results] == [(True, False)] * 2


_KINDS = ["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use"]
_text = st.text()
_count = st.integers(0, 2**40)
_blocks = st.lists(st.fixed_dictionaries({"type": st.sampled_from(_KINDS), "text": _text}), max_size=4)
_usages = st.fixed_dictionaries(
    {"input_tokens": _count, "output_tokens": _count},
    optional={"cache_read_input_tokens": _count | st.none(), "cache_creation_input_tokens": _count},
)
_bodies = st.fixed_dictionaries(
    {"model": _text, "content": _blocks, "stop_reason": st.none() | _text, "usage": _usages}
)


def _as_json(message: Any) -> bytes:
    return json.dumps(message).encode()


def _as_events(message: Any) -> bytes:
    """Return a message as the API streams it, each text in pieces."""
    usage = message["usage"]
    events: List[Any] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "usage": usage}},
        {"type": "ping"},
    ]
    for index, block in enumerate(message["content"]):
        start = {**block, "text": ""} if block["type"] == "text" else block
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        if block["type"] == "text":
            pieces = [{"type": "text_delta", "text": letter} for letter in block["text"]]
            events.extend({"type": "content_block_delta", "index": index, "delta": piece} for piece in pieces)
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}})
    events.append({"type": "message_stop"})
    return b"".join(b"event: %s\r\ndata: %s\r\n\r\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


_ENCODINGS = [(_as_json, "application/json"), (_as_events, EVENT_STREAM)]


@given(
    _bodies,
    st.sampled_from(_ENCODINGS),
    st.fixed_dictionaries(
        {
            "request_id": st.none() | _text,
            "api_version": st.none() | _text,
            "account": st.none() | _text,
            "agent_name": _text,
            "created": st.floats(0, 1e11),
            "parts": st.lists(st.tuples(_text, _text), max_size=3).map(tuple),
            "suspicions": st.lists(_text, max_size=3).map(tuple),
        }
    ),
)
def test_an_answer_survives_its_encoding(message: Any, encoding: Any, known: Any) -> None:
    write, content_type = encoding
    answer = read_answer(write(message), content_type=content_type, **known)
    assert AnswerCodec().decode(AnswerCodec().encode(answer)) == answer


@given(_bodies)
def test_a_streamed_answer_says_what_the_whole_one_says(message: Any) -> None:
    whole, streamed = (read_answer(write(message), content_type=kind) for write, kind in _ENCODINGS)
    assert replace(streamed, body=whole.body, content_type=whole.content_type) == whole


@given(_bodies, st.data())
def test_a_stream_that_ended_early_is_no_answer(message: Any, data: Any) -> None:
    body = _as_events(message)
    end = body.index(b"event: message_stop")
    with pytest.raises(InvalidAnswerError, match="format"):
        read_answer(body[: data.draw(st.integers(0, end))], content_type=EVENT_STREAM)


def test_a_stream_with_an_error_is_no_answer() -> None:
    body = _as_events(_MESSAGE)
    at = body.index(b"event: message_stop")
    error = b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
    with pytest.raises(InvalidAnswerError, match="reports an error"):
        read_answer(body[:at] + error + body[at:], content_type=EVENT_STREAM)


_MESSAGE = {
    "model": "m",
    "content": [{"type": "text", "text": "h\u00e9llo"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def test_the_text_of_an_entry_can_be_read_by_eye() -> None:
    body = json.dumps(_MESSAGE, ensure_ascii=False).encode()
    assert "h\u00e9llo".encode() in AnswerCodec().encode(read_answer(body, content_type="application/json"))


def test_an_answer_that_was_not_read_from_a_reply_cannot_be_encoded() -> None:
    with pytest.raises(InvalidValueError, match="no body"):
        AnswerCodec().encode(Answer("x", "m", None, 1, 1))


@given(
    st.binary()
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_what_is_no_answer_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        AnswerCodec().decode(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), st.sampled_from(_ENCODINGS))
def test_a_body_that_is_no_message_is_an_invalid_answer(body: Any, encoding: Any) -> None:
    data = json.dumps(body).encode()
    for written in (data, b"data: %s\n\n" % data):
        with pytest.raises(InvalidAnswerError):
            read_answer(written, content_type=encoding[1])


@pytest.mark.parametrize(
    "change",
    [
        {"content_type": 1},
        {"request_id": 1},
        {"agent_name": None},
        {"created": True},
        {"extra": 1},
        {"parts": "ab"},
        {"account": 1},
    ],
    ids=str,
)
def test_an_answer_with_a_wrong_field_is_a_value_error(change: Any) -> None:
    data = AnswerCodec().encode(read_answer(_as_json(_MESSAGE), content_type="application/json"))
    line, _, body = data.partition(b"\n")
    with pytest.raises(ValueError, match="not an answer"):
        AnswerCodec().decode(json.dumps({**json.loads(line), **change}).encode() + b"\n" + body)
