"""Calls: what is retried and when, time-outs, and the names of failures."""

from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate
from typing import Any, Dict, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator import (
    AsyncAgentOrchestrator,
    AuthenticationError,
    BadRequestError,
    CallError,
    CallTimeoutError,
    ConfigError,
    ConnectionFailedError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    SpendLimitError,
)
from claude_force_orchestrator._calls import MAX_RETRY_AFTER, backoff, retry_after
from claude_force_orchestrator._families import Families


async def _ask(it: AsyncAgentOrchestrator) -> Any:
    return await it.execute_agent("code-reviewer", "x")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_a_passing_failure_is_tried_again(make: Any, run: Any, api: Any, status: int) -> None:
    api.says(api.reply(status=status, headers={"retry-after": "0"}), "at last")
    orchestrator = make()
    result = run(_ask, orchestrator)
    assert (result.success, result.output) == (True, "at last")
    assert len(api.requests) == orchestrator.totals.calls == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, BadRequestError),
        (403, PermissionDeniedError),
        (404, BadRequestError),
        (413, BadRequestError),
        (422, BadRequestError),
    ],
)
def test_a_lasting_failure_is_not_tried_again(run: Any, api: Any, status: int, error: type) -> None:
    api.says(status)
    result = run(_ask)
    assert len(api.requests) == 1
    assert type(result.error) is error
    assert (result.error.status, result.error.request_id, result.error.attempts) == (status, "req_1", 1)
    assert result.errors == (f"127.0.0.1:{api.port} answered {status}: a reason for {status}",)
    assert type(result.error.__cause__).__module__.startswith("anthropic")


@pytest.mark.parametrize(("status", "error"), [(500, ServerError), (409, ServerError), (529, OverloadedError)])
@pytest.mark.parametrize("max_retries", [0, 2])
def test_attempts_end_after_the_retries_and_nobody_multiplies_them(
    run: Any, api: Any, status: int, error: type, max_retries: int
) -> None:
    api.default = api.reply(status=status, headers={"retry-after-ms": "1"})
    result = run(_ask, max_retries=max_retries)
    assert type(result.error) is error
    assert len(api.requests) == result.error.attempts == max_retries + 1


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 1), (2, 10), (12, 13)])
def test_a_rate_limit_is_no_failure_of_the_call_that_meets_it(
    make: Any, run: Any, api: Any, max_retries: int, attempts: int
) -> None:
    api.default = api.reply(status=429, headers={"retry-after-ms": "1"})
    orchestrator = make(max_retries=max_retries)
    orchestrator._families = orchestrator._caller._families = Families(10, lambda *_, **__: None, jitter=lambda: 0.0)
    result = run(_ask, orchestrator)
    assert type(result.error) is RateLimitError
    assert len(api.requests) == result.error.attempts == attempts


def test_a_reached_spend_limit_is_not_tried_again(run: Any, api: Any) -> None:
    body = api.failure(429, details={"error_code": "enforced_spend_limit_reached"})
    api.says(api.reply(body, status=429))
    result = run(_ask)
    assert isinstance(result.error, SpendLimitError)
    assert len(api.requests) == 1


def test_a_server_may_forbid_another_attempt(run: Any, api: Any) -> None:
    api.says(api.reply(status=500, headers={"x-should-retry": "false"}))
    assert isinstance(run(_ask).error, ServerError)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("headers", "least"),
    [({"retry-after": "0.4"}, 0.4), ({"retry-after-ms": "300"}, 0.3), ({"retry-after": "1"}, 1.0)],
    ids=str,
)
def test_the_pause_that_a_server_asks_for_is_kept(run: Any, api: Any, headers: Dict[str, str], least: float) -> None:
    api.says(api.reply(status=429, headers=headers), "ok")
    assert run(_ask).success
    first, second = [request["time"] for request in api.requests]
    assert second - first >= least


def test_a_pause_given_as_a_date_is_kept(run: Any, api: Any) -> None:
    until = int(time.time()) + 2
    api.says(api.reply(status=503, headers={"retry-after": formatdate(until, usegmt=True)}), "ok")
    assert run(_ask).success
    assert time.time() >= until


def test_a_pause_beyond_reason_fails_at_once(run: Any, api: Any) -> None:
    api.says(api.reply(status=429, headers={"retry-after": "86400"}))
    result = run(_ask)
    assert isinstance(result.error, RateLimitError)
    assert "86,400 s" in result.errors[0]
    assert len(api.requests) == 1


@given(
    asked=st.none() | st.floats(0, MAX_RETRY_AFTER),
    failures=st.integers(1, 10_000),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_pause_is_bounded_and_never_undercuts(asked: Optional[float], failures: int, share: float) -> None:
    pause = backoff(failures, asked, jitter=share)
    if asked is None:
        most = min(8.0, 0.5 * 2.0 ** min(failures, 16))
        assert 0.6 * most <= pause <= most
    else:
        assert asked <= pause <= asked + 0.5


@given(st.floats(0, 1, exclude_max=True))
def test_the_pauses_of_one_call_double(share: float) -> None:
    pauses = [backoff(failures, None, jitter=share) for failures in range(1, 7)]
    assert [later / pauses[0] for later in pauses] == pytest.approx([1, 2, 4, 8, 8, 8])


def test_the_time_that_a_call_was_held_up_counts_in_its_next_pause(run: Any, api: Any) -> None:
    async def test(orchestrator: AsyncAgentOrchestrator) -> Any:
        return await orchestrator.execute_multiple([("code-reviewer", "one"), ("code-reviewer", "two")])

    # Both wait for the pause that one of them is told, and then one fails again.
    api.says(500, api.reply(status=429, headers={"retry-after": "1"}), 500, "ok", "ok")
    assert all(result.success for result in run(test))
    again = api.requests[2]
    (retry,) = [request for request in api.requests[3:] if request["body"] == again["body"]]
    assert retry["time"] - again["time"] >= 2


@given(st.integers(1, 20), st.floats(0, 1, exclude_max=True), st.floats(0, 1000))
def test_a_call_that_was_held_up_and_fails_again_doubles_that(failures: int, share: float, waited: float) -> None:
    pause = backoff(failures, None, jitter=share, waited=waited)
    assert pause == max(backoff(failures, None, jitter=share), min(8.0, 2 * waited))
    assert backoff(failures, 3.0, jitter=share, waited=waited) == backoff(failures, 3.0, jitter=share)


@given(st.floats() | st.text(), st.floats() | st.text())
def test_any_header_gives_seconds_or_nothing(one: Any, other: Any) -> None:
    seconds = retry_after({"retry-after-ms": str(one), "retry-after": str(other)}, now=1.8e9)
    assert seconds is None or 0 <= seconds < float("inf")


def test_the_finer_header_comes_first_and_nonsense_is_passed_over() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "7"}, now=0) == 1.5
    assert retry_after({"retry-after-ms": "soon", "retry-after": "7"}, now=0) == 7
    assert retry_after({"retry-after": "-7"}, now=0) == 0
    assert retry_after({"retry-after": "nan"}, now=0) is None
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, now=20) == 40
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, now=90) == 0
    assert retry_after({}, now=0) is None


@pytest.mark.parametrize("slow", [{"delay": 5.0}, {"trickle": 0.02}], ids=["silent", "trickling"])
def test_each_attempt_is_bounded_in_time_whatever_the_server_sends(run: Any, api: Any, slow: Dict[str, float]) -> None:
    api.says(api.reply(api.message("x" * 2000), **slow))
    api.default = api.reply(api.message("quick"))
    result = run(_ask, timeout_seconds=0.3)
    assert (result.success, result.output) == (True, "quick")
    assert len(api.requests) >= 2


def test_a_time_out_after_all_retries_has_its_own_error(run: Any, api: Any) -> None:
    api.default = api.reply(delay=1.0)
    result = run(_ask, timeout_seconds=0.1, max_retries=1)
    assert isinstance(result.error, CallTimeoutError)
    assert isinstance(result.error.__cause__, TimeoutError)
    assert result.errors == (
        f"no complete answer from 127.0.0.1:{api.port} within 0.1 s (2 attempts); raise timeout_seconds",
    )


def test_a_lost_connection_is_tried_again(run: Any, api: Any) -> None:
    api.says(api.reply(drop=True), "ok")
    assert run(_ask).success
    assert len(api.requests) == 2


def test_an_api_that_is_not_there_is_a_failed_task(make: Any, run: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        orchestrator = make(base_url=f"http://127.0.0.1:{port}", max_retries=1)
        result = run(_ask, orchestrator)
    assert isinstance(result.error, ConnectionFailedError)
    assert (result.error.attempts, orchestrator.totals.calls) == (2, 2)
    assert f"127.0.0.1:{port}" in result.errors[0]


def test_the_event_loop_runs_while_the_sdk_is_imported_and_a_call_is_made(run: Any, api: Any) -> None:
    api.says(api.reply(delay=0.2))

    async def watch(it: AsyncAgentOrchestrator) -> int:
        task = asyncio.ensure_future(_ask(it))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns

    assert run(watch) > 20


def test_cancelling_a_call_cancels_it(run: Any, api: Any) -> None:
    api.default = api.reply(delay=0.5)

    async def cancel(it: AsyncAgentOrchestrator) -> None:
        task = asyncio.ensure_future(_ask(it))
        await api.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.totals.tasks == 0

    run(cancel)


def test_the_key_is_in_no_message_and_no_representation(make: Any, run: Any, api: Any) -> None:
    key = "sk-ant-very-secret-0123456789"
    api.says(api.reply({"type": "error", "error": {"type": "x", "message": f"the key {key} is wrong"}}, status=401))
    orchestrator = make(api_key=key)
    result = run(_ask, orchestrator)
    assert key in api.requests[0]["headers"].get("x-api-key", "") + api.requests[0]["headers"].get("authorization", "")
    assert key not in result.errors[0]
    assert key not in repr(result.error) + repr(orchestrator.settings) + repr(orchestrator.settings.describe())


@pytest.mark.parametrize("key", ["", " ", "sk ant", "sk-ant\n", "sk-\u00e9", "sk-\x7f", 7])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(make: Any, key: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make(api_key=key)
    assert not str(key).strip() or str(key) not in str(caught.value)


def test_an_error_of_another_server_is_one_short_line(run: Any, api: Any) -> None:
    api.says(api.reply(b"<html>\n" + b"<p>no\n" * 1000, status=404, headers={"content-type": "text/html"}))
    result = run(_ask)
    assert isinstance(result.error, CallError)
    assert "\n" not in result.errors[0]
    assert len(result.errors[0]) < 400
