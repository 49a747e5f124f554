"""The drop-in: a program's own client of the SDK, in every way of adopting the cache, against an API on loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Iterator, List, Optional

import anthropic
import pytest
from pydantic import BaseModel

from claude_force_cache import BlockingCache, Cache, open_cache
from claude_force_orchestrator import Answer, AnswerCodec, CacheMiddleware, ConfigError, cached
from claude_force_orchestrator._exchange import Question

KEY = "sk-ant-test-0123456789"
QUESTION: Dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Why?"}],
}
# By version, and not by what the SDK has: if it lost it, that has to fail.
HAS_MIDDLEWARE = tuple(map(int, anthropic.__version__.split(".")[:2])) >= (0, 108)
WAYS = ["cached", "middleware"] if HAS_MIDDLEWARE else ["cached"]

Test = Callable[[Any, Cache[Answer]], Awaitable[Any]]


def make_cache(url: str = "memory://", **options: Any) -> Cache[Answer]:
    return open_cache(url, codec=AnswerCodec(), **options)


def adopt(way: str, kind: Any, cache: Any, options: Optional[Dict[str, Any]] = None, **arguments: Any) -> Any:
    """Return a client of ``kind`` with the cache in front of it."""
    arguments = {"api_key": KEY, "max_retries": 0, **arguments}
    if way == "cached":
        return cached(kind(**arguments), cache, **(options or {}))
    return kind(middleware=[CacheMiddleware(cache, **(options or {}))], **arguments)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(way: str, api: Any) -> Callable[..., Any]:
    """Run ``test(client, cache)`` with an asynchronous client in an event loop of its own."""

    def in_loop(test: Test, url: str = "memory://", options: Optional[Dict[str, Any]] = None, **arguments: Any) -> Any:
        async def main() -> Any:
            async with make_cache(url) as cache:
                client = adopt(way, anthropic.AsyncAnthropic, cache, options, **{"base_url": api.url, **arguments})
                async with client:
                    return await test(client, cache)

        return asyncio.run(main())

    return in_loop


@pytest.fixture
def blocking(way: str, api: Any) -> Iterator[Any]:
    """A blocking client with a cache in front of it."""
    with BlockingCache(make_cache()) as cache, adopt(way, anthropic.Anthropic, cache, base_url=api.url) as client:
        yield client


async def _twice(client: Any, **arguments: Any) -> List[Any]:
    return [await client.messages.create(**{**QUESTION, **arguments}) for _ in range(2)]


def _ask_twice(run: Callable[..., Any], *, options: Optional[Dict[str, Any]] = None, **arguments: Any) -> Any:
    return run(lambda client, cache: _twice(client, **arguments), options=options)


async def _collect(stream: Any) -> List[Any]:
    return [event async for event in stream]


# What comes back


def test_the_second_message_equals_the_first_and_costs_no_call(run: Any, api: Any) -> None:
    first, again = _ask_twice(run)
    assert (type(again), again) == (type(first), first)
    assert (first._request_id, again._request_id) == ("req_1", "cached_req_1")
    assert len(api.requests) == 1


def test_the_second_message_of_a_blocking_client_equals_the_first(blocking: Any, api: Any) -> None:
    first, again = (blocking.messages.create(**QUESTION) for _ in range(2))
    assert (type(again), again) == (type(first), first)
    assert (first._request_id, again._request_id) == ("req_1", "cached_req_1")
    assert len(api.requests) == 1


def test_headers_say_whether_it_was_a_hit(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return [await client.messages.with_raw_response.create(**QUESTION) for _ in range(2)]

    api.default = api.reply(headers={"anthropic-ratelimit-requests-remaining": "7"})
    first, again = run(test)
    assert (first.headers["x-claude-force-cache"], again.headers["x-claude-force-cache"]) == ("miss", "hit")
    assert again.headers["age"] == "0"
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "7"
    assert "anthropic-ratelimit-requests-remaining" not in again.headers
    for response in (first, again):
        assert response.elapsed.total_seconds() >= 0
        assert (response.status_code, str(response.url)) == (200, f"{api.url}/v1/messages")


def test_raw_responses_hold_the_same_bytes(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return [(await client.messages.with_raw_response.create(**QUESTION)).http_response for _ in range(2)]

    first, again = run(test)
    assert first.content == again.content == api.default.body


def test_raw_responses_of_a_blocking_client_parse_alike(blocking: Any, api: Any) -> None:
    first, again = (blocking.messages.with_raw_response.create(**QUESTION) for _ in range(2))
    assert first.parse() == again.parse()
    assert again.headers["x-claude-force-cache"] == "hit"


def test_streamed_responses_parse_alike(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        found = []
        for _ in range(2):
            async with client.messages.with_streaming_response.create(**QUESTION) as response:
                found.append((response.headers["x-claude-force-cache"], await response.parse()))
        return found

    (first, message), (again, same) = run(test)
    assert (first, again, same) == ("miss", "hit", message)
    assert len(api.requests) == 1


def test_streamed_responses_of_a_blocking_client_give_the_same_lines(blocking: Any, api: Any) -> None:
    lines = []
    for _ in range(2):
        with blocking.messages.with_streaming_response.create(**QUESTION) as response:
            lines.append(list(response.iter_lines()))
    assert lines[0] == lines[1]
    assert len(api.requests) == 1


def test_a_compressed_reply_is_recorded_as_what_it_says(run: Any, api: Any) -> None:
    body = gzip.compress(json.dumps(api.message("squeezed")).encode())
    api.says(api.reply(body, headers={"content-encoding": "gzip"}))
    first, again = _ask_twice(run)
    assert first == again
    assert again.content[0].text == "squeezed"


class _Reason(BaseModel):
    reason: str


# The newest SDK for Python 3.8 is 0.72, and messages.parse is younger: there is nothing to call. Every SDK that has
# middleware has it too, so that there this is never skipped.
@pytest.mark.skipif(not HAS_MIDDLEWARE, reason=f"anthropic {anthropic.__version__} has no messages.parse")
def test_structured_output_is_parsed_again(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return [await client.messages.parse(**QUESTION, output_format=_Reason) for _ in range(2)]

    api.says('{"reason": "because"}')
    first, again = run(test)
    assert first.parsed_output == again.parsed_output == _Reason(reason="because")
    assert len(api.requests) == 1


def test_beta_messages_are_cached_apart(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        plain = await client.messages.create(**QUESTION)
        beta = [await client.beta.messages.create(**QUESTION, betas=["one-2026-01-01"]) for _ in range(2)]
        other = await client.beta.messages.create(**QUESTION, betas=["two-2026-01-01"])
        return plain, beta, other

    plain, (first, again), other = run(test)
    assert (type(again), again) == (type(first), first)
    assert [m._request_id for m in (plain, first, again, other)] == ["req_1", "req_1", "cached_req_1", "req_1"]
    assert [request["headers"].get("anthropic-beta") for request in api.requests] == [
        None,
        "one-2026-01-01",
        "two-2026-01-01",
    ]


def test_usage_says_that_it_was_a_hit_if_asked_to(run: Any, api: Any) -> None:
    first, again = _ask_twice(run, options={"mark_usage": True})
    assert not hasattr(first.usage, "claude_force_cache")
    assert again.usage.claude_force_cache == "hit"
    assert again.usage.input_tokens == first.usage.input_tokens


# What is part of the key


@pytest.mark.parametrize(
    "change",
    [
        {"model": "claude-opus-5-5"},
        {"max_tokens": 101},
        {"messages": [{"role": "user", "content": "Why not?"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        {"system": "Be brief."},
        {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"name": "look", "input_schema": {"type": "object"}}]},
        {"tool_choice": {"type": "none"}},
        {"metadata": {"user_id": "u"}},
        {"stop_sequences": ["x"]},
        {"extra_body": {"brand_new": 1}},
        {"extra_body": {"brand_new": True}},
        {"extra_query": {"region": "eu"}},
        {"extra_headers": {"x-brand-new": "1"}},
        {"extra_headers": {"anthropic-beta": "one-2026-01-01"}},
        {"stream": True},
    ],
    ids=str,
)
def test_whatever_is_asked_is_part_of_the_key_and_sent_on_untouched(run: Any, api: Any, change: Dict[str, Any]) -> None:
    async def test(client: Any, cache: Any) -> None:
        await client.messages.create(**QUESTION)
        for _ in range(2):
            reply = await client.messages.create(**{**QUESTION, **change})
            if change.get("stream"):
                await _collect(reply)

    api.says(api.reply(), api.feed(*api.events(), end=True) if change.get("stream") else api.reply())
    run(test)
    assert len(api.requests) == 2
    sent = api.requests[1]
    body = {
        **QUESTION,
        **{k: v for k, v in change.items() if not k.startswith("extra_")},
        **change.get("extra_body", {}),
    }
    assert sent["body"] == body
    assert sent["path"] == "/v1/messages" + ("?region=eu" if "extra_query" in change else "")
    for name, value in change.get("extra_headers", {}).items():
        assert sent["headers"][name] == value


@pytest.mark.parametrize(
    "change",
    [
        {"extra_headers": {"user-agent": "mine"}},
        {"extra_headers": {"Idempotency-Key": "1"}},
        {"extra_headers": {"X-Stainless-Anything": "1"}},
        {"extra_headers": {"traceparent": "00-1"}},
        {"timeout": 7.5},
    ],
    ids=str,
)
def test_how_a_request_travels_is_no_part_of_the_key(run: Any, api: Any, change: Dict[str, Any]) -> None:
    async def test(client: Any, cache: Any) -> None:
        await client.messages.create(**QUESTION)
        await client.messages.create(**QUESTION, **change)

    run(test)
    assert len(api.requests) == 1


def test_headers_and_query_of_the_client_are_part_of_the_key(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        for options in ({}, {"default_headers": {"x-team": "a"}}, {"default_query": {"q": "1"}}):
            await client.with_options(**options).messages.create(**QUESTION)

    run(test)
    assert len(api.requests) == 3


def test_another_base_url_is_another_api(way: str, api: Any) -> None:
    async def main() -> None:
        async with make_cache() as cache:
            for url in (api.url, f"{api.url}/elsewhere"):
                async with adopt(way, anthropic.AsyncAnthropic, cache, base_url=url) as client:
                    await client.messages.create(**QUESTION)

    asyncio.run(main())
    assert [request["path"] for request in api.requests] == ["/v1/messages", "/elsewhere/v1/messages"]


def test_other_endpoints_pass(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        for _ in range(2):
            await client.messages.count_tokens(model="m", messages=QUESTION["messages"])
        assert cache.stats().hits + cache.stats().misses == 0

    api.default = api.reply({"input_tokens": 3})
    run(test)
    assert [request["path"] for request in api.requests] == ["/v1/messages/count_tokens"] * 2


# What is stored


@pytest.mark.parametrize(
    "stop_reason", ["max_tokens", "refusal", "pause_turn", "tool_use", "model_context_window_exceeded"]
)
def test_an_answer_that_did_not_end_by_itself_is_passed_on_and_not_stored(run: Any, api: Any, stop_reason: str) -> None:
    api.default = api.reply(api.message(stop_reason=stop_reason))
    first, again = _ask_twice(run)
    assert first == again
    assert (again._request_id, len(api.requests)) == ("req_1", 2)


def test_an_answer_that_asks_for_a_tool_is_stored_if_wanted(run: Any, api: Any) -> None:
    block = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}}
    api.default = api.reply(api.message(content=[block], stop_reason="tool_use"))
    first, again = _ask_twice(run, options={"store_tool_use": True})
    assert first == again
    assert (again._request_id, len(api.requests)) == ("cached_req_1", 1)


def test_an_answer_above_the_limit_is_passed_on_and_not_stored(run: Any, api: Any) -> None:
    first, again = _ask_twice(run, options={"max_recorded_bytes": 10})
    assert first == again
    assert len(api.requests) == 2


def test_a_200_that_is_no_message_is_passed_on_and_not_stored(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return [(await client.messages.with_raw_response.create(**QUESTION)).http_response.content for _ in range(2)]

    api.default = api.reply(b'{"hello": "world"}')
    assert run(test) == [b'{"hello": "world"}'] * 2
    assert len(api.requests) == 2


def test_thinking_is_not_given_to_another_account(way: str, api: Any) -> None:
    async def main() -> None:
        async with make_cache() as cache:
            for key in ("sk-ant-one", "sk-ant-one", "sk-ant-two", "sk-ant-two"):
                async with adopt(way, anthropic.AsyncAnthropic, cache, base_url=api.url, api_key=key) as client:
                    await client.messages.create(**QUESTION)
            (answer,) = [stored.value async for stored in cache.scan() if stored.value is not None]
            assert answer.account is not None
            assert len(answer.account) == 64

    thought = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "so"}]
    api.default = api.reply(api.message(content=thought))
    asyncio.run(main())
    assert len(api.requests) == 2


def test_an_answer_without_thinking_serves_every_account(way: str, api: Any) -> None:
    async def main() -> None:
        async with make_cache() as cache:
            for key in ("sk-ant-one", "sk-ant-two"):
                async with adopt(way, anthropic.AsyncAnthropic, cache, base_url=api.url, api_key=key) as client:
                    await client.messages.create(**QUESTION)

    asyncio.run(main())
    assert len(api.requests) == 1


def test_another_version_of_the_api_is_asked_anew(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        for version in ("2020-01-01", "2020-01-01", "2021-01-01", "2021-01-01"):
            await client.messages.create(**QUESTION, extra_headers={"anthropic-version": version})

    run(test)
    assert [request["headers"]["anthropic-version"] for request in api.requests] == ["2020-01-01", "2021-01-01"]


# What goes wrong


def test_errors_are_the_sdks_own_and_not_stored(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        with pytest.raises(anthropic.BadRequestError, match="a reason for 400") as caught:
            await client.messages.create(**QUESTION)
        assert caught.value.request_id == "req_1"
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.create(**QUESTION)
        with pytest.raises(anthropic.APIConnectionError):
            await client.messages.create(**QUESTION)
        await client.messages.create(**QUESTION)

    api.says(400, 500, api.reply(drop=True))
    run(test)
    assert len(api.requests) == 4


def test_errors_of_a_blocking_client_are_the_sdks_own(blocking: Any, api: Any) -> None:
    api.says(400, api.reply(drop=True))
    with pytest.raises(anthropic.BadRequestError, match="a reason for 400"):
        blocking.messages.create(**QUESTION)
    with pytest.raises(anthropic.APIConnectionError):
        blocking.messages.create(**QUESTION)
    blocking.messages.create(**QUESTION)


def test_retries_stay_the_sdks(run: Any, api: Any) -> None:
    headers = {"retry-after-ms": "1"}
    api.says(api.reply(status=429, headers=headers), api.reply(status=529, headers=headers))
    first, again = run(lambda client, cache: _twice(client), max_retries=2)
    assert first == again
    assert [request["headers"]["x-stainless-retry-count"] for request in api.requests] == ["0", "1", "2"]


def test_a_time_out_is_the_sdks_own(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        with pytest.raises(anthropic.APITimeoutError):
            await client.messages.create(**QUESTION, timeout=0.1)

    api.says(api.reply(delay=0.5))
    run(test)


def test_a_store_that_is_gone_costs_no_answer(run: Any, api: Any, absent_server: str) -> None:
    first, again = run(lambda client, cache: _twice(client), url=f"redis://{absent_server}?tier_bytes=0")
    assert first == again
    assert len(api.requests) == 2


def test_a_store_that_is_silent_costs_no_answer(run: Any, api: Any, silent_server: str) -> None:
    first, again = run(lambda client, cache: _twice(client), url=f"redis://{silent_server}?timeout=0.05&tier_bytes=0")
    assert first == again
    assert len(api.requests) == 2


def test_a_cache_that_was_closed_costs_no_answer_and_one_line(run: Any, api: Any, caplog: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        await cache.close()
        return await _twice(client)

    with caplog.at_level(logging.WARNING, "claude_force_orchestrator"):
        first, again = run(test)
    assert first == again
    assert len(caplog.records) == 1


def test_a_blocking_cache_that_is_not_open_costs_no_answer_and_one_line(way: str, api: Any, caplog: Any) -> None:
    client = adopt(way, anthropic.Anthropic, BlockingCache(make_cache()), base_url=api.url)
    with client, caplog.at_level(logging.WARNING, "claude_force_orchestrator"):
        assert client.messages.create(**QUESTION) == client.messages.create(**QUESTION)
    assert "with" in caplog.text
    assert len(caplog.records) == 1


def test_a_body_that_no_key_can_hold_is_no_question() -> None:
    body = json.dumps({**QUESTION, "max_tokens": float("nan")}).encode()
    assert Question.read("POST", "https://api/v1/messages", [], body) is None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/messages", b"{}"),
        ("POST", "/v1/messages/batches", json.dumps(QUESTION).encode()),
        ("POST", "/v1/messages", b""),
        ("POST", "/v1/messages", b"[" * 100_000),
        ("POST", "/v1/messages", b"[]"),
        ("POST", "/v1/messages", b'{"messages": 1}'),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_asks_for_no_message_is_no_question(method: str, path: str, body: bytes) -> None:
    assert Question.read(method, f"https://api{path}", [], body) is None


# What callers ask of it


def test_no_cache_asks_anew_and_stores(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        first = await client.messages.create(**QUESTION)
        new = await client.messages.create(**QUESTION, extra_headers={"X-Claude-Force-Cache": "no-cache"})
        return first, new, await client.messages.create(**QUESTION)

    api.says("old", "new")
    first, new, again = run(test)
    assert [message.content[0].text for message in (first, new, again)] == ["old", "new", "new"]
    assert all("x-claude-force-cache" not in request["headers"] for request in api.requests)


def test_no_store_leaves_the_cache_out(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        for _ in range(2):
            await client.messages.create(**QUESTION, extra_headers={"x-claude-force-cache": "no-store"})
        assert [stored async for stored in cache.scan()] == []

    run(test)
    assert len(api.requests) == 2
    assert all("x-claude-force-cache" not in request["headers"] for request in api.requests)


def test_only_if_cached_never_asks(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        header = {"x-claude-force-cache": "only-if-cached"}
        with pytest.raises(anthropic.APIStatusError, match="no answer to this request") as caught:
            await client.messages.create(**QUESTION, extra_headers=header)
        assert (caught.value.status_code, len(api.requests)) == (504, 0)
        first = await client.messages.create(**QUESTION)
        return first, await client.messages.create(**QUESTION, extra_headers=header)

    first, again = run(test, max_retries=2)
    assert first == again
    assert len(api.requests) == 1


def test_a_mode_that_is_unknown_is_refused_in_one_line(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> None:
        with pytest.raises(anthropic.BadRequestError, match="must be one of no-cache, no-store, only-if-cached"):
            await client.messages.create(**QUESTION, extra_headers={"x-claude-force-cache": "maybe"})

    run(test)
    assert api.requests == []


@pytest.mark.parametrize("tag", ["team:a", "model:claude-haiku-5-5", "tenant:"])
def test_tags_invalidate(run: Any, api: Any, tag: str) -> None:
    async def test(client: Any, cache: Any) -> None:
        await _twice(client)
        await cache.invalidate(tag)
        await _twice(client)

    run(test, options={"tags": ["team:a"]})
    assert len(api.requests) == 2


@asynccontextmanager
async def _after_50_seconds(way: str, api: Any, **options: float) -> AsyncIterator[Any]:
    """Yield a client whose question was answered 50 seconds ago."""
    now = 1_000_000.0
    cache = make_cache(clock=lambda: now)
    client = adopt(way, anthropic.AsyncAnthropic, cache, dict(options), base_url=api.url)
    async with cache, client:
        await client.messages.create(**QUESTION)
        now += 50
        yield client


def test_an_old_answer_stands_in_for_an_api_that_is_down(way: str, api: Any) -> None:
    async def main() -> Any:
        async with _after_50_seconds(way, api, ttl=10.0, stale_if_error=100.0) as client:
            stale = await client.messages.with_raw_response.create(**QUESTION)
            with pytest.raises(anthropic.BadRequestError):
                await client.messages.create(**QUESTION)
            return stale

    api.says(api.reply(), 529, 400)
    stale = asyncio.run(main())
    assert (stale.headers["x-claude-force-cache"], stale.headers["age"]) == ("stale", "50")


def test_an_old_answer_is_given_at_once_while_a_new_one_is_made(way: str, api: Any) -> None:
    async def main() -> Any:
        async with _after_50_seconds(way, api, ttl=10.0, stale_while_revalidate=100.0) as client:
            stale = await client.messages.create(**QUESTION)
            await api.arrived(2)
            for _ in range(500):
                new = await client.messages.create(**QUESTION)
                if new.content[0].text == "new":
                    break
                await asyncio.sleep(0.01)
            return stale, new

    api.says("old", "new")
    stale, new = asyncio.run(main())
    assert (stale.content[0].text, new.content[0].text, len(api.requests)) == ("old", "new", 2)


# Many at once


def test_equal_questions_at_once_are_one_call(run: Any, api: Any) -> None:
    async def test(client: Any, cache: Any) -> Any:
        return await asyncio.gather(*(client.messages.create(**QUESTION) for _ in range(50)))

    messages = run(test)
    assert all(message == messages[0] for message in messages)
    assert sorted(message._request_id for message in messages) == ["cached_req_1"] * 49 + ["req_1"]
    assert len(api.requests) == 1


def test_equal_questions_of_threads_at_once_are_one_call(blocking: Any, api: Any) -> None:
    gate = threading.Event()
    api.says(api.reply(gate=gate))
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(blocking.messages.create, **QUESTION) for _ in range(12)]
        asyncio.run(api.arrived())
        gate.set()
        messages = [each.result() for each in asked]
    assert all(message == messages[0] for message in messages)
    assert len(api.requests) == 1


def test_when_the_first_of_ten_is_cancelled_the_others_get_the_one_answer(run: Any, api: Any) -> None:
    gate = threading.Event()

    async def test(client: Any, cache: Any) -> Any:
        tasks = [asyncio.ensure_future(client.messages.create(**QUESTION)) for _ in range(10)]
        await api.arrived()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    api.says(api.reply(gate=gate))
    first, *others = run(test)
    assert isinstance(first, asyncio.CancelledError)
    assert all(message == others[0] for message in others)
    assert len(api.requests) == 1


def test_an_error_is_the_first_ones_and_the_others_try_once_more_together(run: Any, api: Any) -> None:
    gate = threading.Event()

    async def test(client: Any, cache: Any) -> Any:
        tasks = [asyncio.ensure_future(client.messages.create(**QUESTION)) for _ in range(10)]
        await api.arrived()
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    api.says(api.reply(status=500, gate=gate))
    first, *others = run(test)
    assert isinstance(first, anthropic.InternalServerError)
    assert all(message == others[0] for message in others)
    assert len(api.requests) == 2


# What does not go together


def test_a_client_and_a_cache_that_do_not_match_are_refused_in_one_line(way: str, api: Any) -> None:
    cache = make_cache()
    blocking = BlockingCache(cache)

    async def ask(client: Any) -> None:
        async with client:
            await client.messages.create(**QUESTION)

    with pytest.raises(ConfigError, match="takes the Cache itself"):
        asyncio.run(ask(adopt(way, anthropic.AsyncAnthropic, blocking, base_url=api.url)))
    with pytest.raises(ConfigError, match="takes a BlockingCache"):
        adopt(way, anthropic.Anthropic, cache, base_url=api.url).messages.create(**QUESTION)
    assert api.requests == []


@pytest.mark.parametrize(("client", "cache"), [(None, "c"), (object(), "c"), ("client", None), ("client", "memory://")])
def test_what_is_no_client_or_no_cache_is_refused(client: Any, cache: Any) -> None:
    client = anthropic.AsyncAnthropic(api_key=KEY) if client == "client" else client
    cache = make_cache() if cache == "c" else cache
    with pytest.raises(ConfigError, match=r"no client|no cache"):
        cached(client, cache)


@pytest.mark.parametrize("tags", ["team:a", ["model:other"], [1], None], ids=str)
def test_tags_that_cannot_be_used_are_refused(way: str, tags: Any) -> None:
    with pytest.raises(ConfigError, match="tag"):
        adopt(way, anthropic.AsyncAnthropic, make_cache(), {"tags": tags})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ttl", 0),
        ("ttl", "soon"),
        ("max_age", -1),
        ("stale_while_revalidate", float("nan")),
        ("stale_if_error", -3),
        ("max_recorded_bytes", 0),
        ("max_recorded_bytes", 1.5),
    ],
)
@pytest.mark.parametrize("kind", [anthropic.AsyncAnthropic, anthropic.Anthropic])
def test_numbers_that_cannot_be_used_are_refused(way: str, kind: Any, option: str, value: Any) -> None:
    cache: Any = make_cache() if kind is anthropic.AsyncAnthropic else BlockingCache(make_cache())
    with pytest.raises(ConfigError, match=f"^{option} must be"):
        adopt(way, kind, cache, {option: value})


def test_a_cache_that_does_not_keep_answers_is_refused(way: str) -> None:
    cache = open_cache("memory://")
    for kind, given in ((anthropic.AsyncAnthropic, cache), (anthropic.Anthropic, BlockingCache(cache))):
        with pytest.raises(ConfigError, match=r"does not keep answers: open it with codec=AnswerCodec\(\)"):
            adopt(way, kind, given)


def test_an_sdk_without_middleware_is_told_what_to_use() -> None:
    if HAS_MIDDLEWARE:
        CacheMiddleware(make_cache())
    else:
        with pytest.raises(ConfigError, match=r"has no middleware.*cached\(client, cache\)"):
            CacheMiddleware(make_cache())


def test_the_client_that_was_given_stays_as_it_is(api: Any) -> None:
    async def main() -> None:
        async with make_cache() as cache, anthropic.AsyncAnthropic(api_key=KEY, base_url=api.url) as client:
            with_cache = cached(client, cache)
            assert type(with_cache) is type(client)
            await _twice(with_cache)
            assert len(api.requests) == 1
            await _twice(client)
            assert len(api.requests) == 3

    asyncio.run(main())


def test_settings_of_the_http_client_stay_in_force(api: Any) -> None:
    seen: List[str] = []

    async def hook(request: Any) -> None:
        seen.append(request.headers["x-of-the-client"])

    async def main() -> None:
        http_client = anthropic.DefaultAsyncHttpxClient(
            headers={"x-of-the-client": "1"}, event_hooks={"request": [hook]}
        )
        async with make_cache() as cache:
            client = anthropic.AsyncAnthropic(api_key=KEY, base_url=api.url, http_client=http_client)
            async with cached(client, cache) as with_cache:
                await _twice(with_cache)
            assert http_client.is_closed

    asyncio.run(main())
    assert seen == ["1"]
