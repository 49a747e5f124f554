"""What the orchestrator has stored answers the drop-in, and the other way round."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Callable, Dict

import anthropic
import pytest

from claude_force_cache import open_cache
from claude_force_orchestrator import AnswerCodec, AsyncAgentOrchestrator, CacheMiddleware, cached

KEY = "sk-ant-test-0123456789"
# By version, and not by what the SDK has: if it lost it, that has to fail.
HAS_MIDDLEWARE = tuple(map(int, anthropic.__version__.split(".")[:2])) >= (0, 108)
WAYS = ["cached", "middleware"] if HAS_MIDDLEWARE else ["cached"]
REQUEST: Dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 4096,
    "system": [{"type": "text", "text": "# Code reviewer\n\nYou review code. Answer in English.\n"}],
    "messages": [{"role": "user", "content": "Review it."}],
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["disk", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> str:
    """A store that outlives each process; without a tier, so that it is the store that answers."""
    if request.param == "disk":
        return f"disk://{tmp_path}/answers?tier_bytes=0"
    return f"{request.getfixturevalue('redis_server').url}?tier_bytes=0&namespace={namespace}"


def _client(way: str, cache: Any, base_url: str) -> Any:
    if way == "cached":
        return cached(anthropic.AsyncAnthropic(api_key=KEY, base_url=base_url), cache)
    return anthropic.AsyncAnthropic(api_key=KEY, base_url=base_url, middleware=[CacheMiddleware(cache)])


async def _ask_sdk(way: str, url: str, api: Any) -> Any:
    async with open_cache(url, codec=AnswerCodec()) as cache, _client(way, cache, api.url) as client:
        return await client.messages.create(**REQUEST)


async def _ask_agent(make: Callable[..., AsyncAgentOrchestrator], url: str) -> Any:
    async with make(cache=url) as orchestrator:
        return await orchestrator.execute_agent("code-reviewer", "Review it.")


def test_what_the_orchestrator_stored_answers_the_drop_in(way: str, url: str, make: Any, api: Any) -> None:
    result = asyncio.run(_ask_agent(make, url))
    message = asyncio.run(_ask_sdk(way, url, api))
    assert result.output == message.content[0].text
    assert message._request_id == "cached_req_1"
    assert len(api.requests) == 1


def test_what_the_drop_in_stored_answers_the_orchestrator(way: str, url: str, make: Any, api: Any) -> None:
    message = asyncio.run(_ask_sdk(way, url, api))
    result = asyncio.run(_ask_agent(make, url))
    assert result.output == message.content[0].text
    assert (result.metadata.cached, result.metadata.request_id) == (True, "req_1")
    assert result.metadata.saved_cost == pytest.approx(0.0002)
    assert len(api.requests) == 1


def test_both_send_the_same_request(way: str, make: Any, api: Any) -> None:
    asyncio.run(_ask_agent(make, "memory://"))
    asyncio.run(_ask_sdk(way, "memory://", api))
    first, second = api.requests
    assert (first["path"], first["body"]) == (second["path"], second["body"])


def test_headers_of_the_environment_are_part_of_both_keys(
    way: str, url: str, make: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_ask_agent(make, url))
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Team: a")
    result = asyncio.run(_ask_agent(make, url))
    assert not result.metadata.cached
    asyncio.run(_ask_sdk(way, url, api))
    assert len(api.requests) == 2


def test_an_agents_answer_with_thinking_is_not_given_to_another_program(
    way: str, url: str, make: Any, api: Any
) -> None:
    thought = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "so"}]
    api.default = api.reply(api.message(content=thought))
    asyncio.run(_ask_agent(make, url))
    asyncio.run(_ask_sdk(way, url, api))
    assert asyncio.run(_ask_agent(make, url)).metadata.cached
    assert len(api.requests) == 2
