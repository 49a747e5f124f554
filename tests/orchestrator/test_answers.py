"""Which answers are of use, which are kept, and how they are encoded."""

from __future__ import annotations

import json
from typing import Any, Optional

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


def test_an_answer_that_cannot_be_stored_is_not_lost(run: Any, api: Any) -> None:
    body = json.dumps({"text": "\ud800"}).encode()
    api.says(api.reply(_message_with(b'"A good answer."', body[9:-1])))
    first, again, _ = _twice(run)
    assert (first.success, first.output, again.metadata.cached) == (True, "\ud800", False)


def test_an_answer_that_is_too_large_for_the_cache_is_not_lost(make: Any, run: Any, api: Any) -> None:
    api.default = api.reply(api.message("".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))))
    orchestrator = make(cache="memory://?max_bytes=10000&compress=off")

    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return [await it.execute_agent("code-reviewer", "x") for _ in range(2)]

    results = run(ask, orchestrator)
    assert [(result.success, result.metadata.cached) for result in results] == [(True, False)] * 2


def _message_with(old: bytes, new: bytes) -> bytes:
    body = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": "A good answer."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    return json.dumps(body).encode().replace(old, new)


_text = st.text(st.characters(exclude_categories=["Cs"]))  # type: ignore[call-arg]  # hypothesis has both spellings
_count = st.integers(0, 2**40)
_answers = st.builds(
    Answer,
    text=_text,
    model=_text,
    stop_reason=st.none() | _text,
    input_tokens=_count,
    output_tokens=_count,
    cache_read_tokens=_count,
    cache_write_5m_tokens=_count,
    cache_write_1h_tokens=_count,
    request_id=st.none() | _text,
    agent_name=_text,
    created=st.floats(0, 1e11),
)


@given(_answers)
def test_an_answer_survives_its_encoding(answer: Answer) -> None:
    assert AnswerCodec().decode(AnswerCodec().encode(answer)) == answer


def test_the_text_of_an_entry_can_be_read_by_eye() -> None:
    assert "h\u00e9llo".encode() in AnswerCodec().encode(Answer("h\u00e9llo", "m", None, 1, 1))


def test_a_lone_surrogate_cannot_be_encoded() -> None:
    with pytest.raises(InvalidValueError, match="surrogate"):
        AnswerCodec().encode(Answer("\ud800", "m", None, 1, 1))


@given(
    st.binary()
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_what_is_no_answer_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        AnswerCodec().decode(data)


@pytest.mark.parametrize(
    "change",
    [{"text": 1}, {"input_tokens": "1"}, {"input_tokens": True}, {"created": None}, {"extra": 1}, {"stop_reason": 1}],
    ids=str,
)
def test_an_answer_with_a_wrong_field_is_a_value_error(change: Any) -> None:
    table = json.loads(AnswerCodec().encode(Answer("x", "m", None, 1, 1)))
    with pytest.raises(ValueError, match="not an answer"):
        AnswerCodec().decode(json.dumps({**table, **change}).encode())
