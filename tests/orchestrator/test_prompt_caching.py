"""Prompt caching: long definitions are marked for the API's own cache where that makes them cheaper."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache import digest, open_cache
from claude_force_orchestrator import AnswerCodec, ConfigError, Context, PriceList
from claude_force_orchestrator._project import Definition
from claude_force_orchestrator._prompt_caching import LIFE_SECONDS, Mark, PromptCaching
from claude_force_orchestrator._request import RequestTemplate

MODEL = "claude-opus-5"
"""It takes prompts of 512 tokens, and costs 5 USD, 6.25 written and 0.50 read."""

LENGTH = 1000


def _marked(body: Dict[str, Any]) -> List[int]:
    """Return the numbers of the blocks of the system prompt that are marked."""
    return [number for number, block in enumerate(body["system"]) if "cache_control" in block]


class APICache:
    """Answers like an API with a prompt cache of its own, in which prompts of ``LENGTH`` tokens last for ever."""

    def __init__(self, api: Any, *, takes: bool = True) -> None:
        self._api = api
        self._takes = takes
        self._prompts = set()  # type: ignore[var-annotated]  # of texts
        api.answers = self.answer

    def answer(self, body: Dict[str, Any]) -> Any:
        usage: Dict[str, int] = {"input_tokens": LENGTH + 10, "output_tokens": 20}
        if _marked(body) and self._takes:
            (last,) = _marked(body)
            prompt = json.dumps([block["text"] for block in body["system"][: last + 1]])
            kind = "read" if prompt in self._prompts else "creation"
            self._prompts.add(prompt)
            usage.update({"input_tokens": 10, f"cache_{kind}_input_tokens": LENGTH})
        return self._api.reply(self._api.message(model=body["model"], usage=usage))


@pytest.fixture
def long(config: Path) -> None:
    """Make the reviewer's definition one that is long enough."""
    (config.parent / "agents" / "reviewer.md").write_text("Review with care. " * 200, encoding="utf-8")


def _ask(count: int = 4, **options: Any) -> Any:
    async def ask(it: Any) -> Any:
        results = [
            await it.execute_agent("code-reviewer", f"task {number}", model=MODEL, **options) for number in range(count)
        ]
        return results, it.totals

    return ask


@pytest.mark.usefixtures("long")
def test_the_second_call_writes_the_definition_and_further_ones_read_it(run: Any, api: Any) -> None:
    APICache(api)
    results, totals = run(_ask(4))
    assert [_marked(request["body"]) for request in api.requests] == [[], [0], [0], [0]]
    assert api.requests[1]["body"]["system"][0]["cache_control"] == {"type": "ephemeral"}
    saved = [-LENGTH * 1.25 / 1e6, *[LENGTH * 4.50 / 1e6] * 2]
    assert [result.metadata.prompt_cache_saved for result in results] == [0.0, *map(pytest.approx, saved)]
    plain = (1010 * 5 + 20 * 25) / 1e6
    assert totals.usd_spent == pytest.approx(4 * plain - sum(saved))
    assert totals.usd_saved_by_prompt_cache == pytest.approx(sum(saved))
    assert (totals.cache_write_tokens, totals.cache_read_tokens) == (LENGTH, 2 * LENGTH)
    assert totals.input_tokens == 4 * 1010


@pytest.mark.usefixtures("long")
def test_a_mark_is_not_part_of_the_key(make: Any, api: Any) -> None:
    async def main() -> Any:
        async with open_cache("memory://", codec=AnswerCodec()) as cache:
            async with make(cache=cache) as marking:
                await _ask(3)(marking)
            async with make(cache=cache, prompt_caching=False) as other:
                return await _ask(3)(other)

    APICache(api)
    results, totals = asyncio.run(main())
    assert all(result.metadata.cached for result in results)
    assert all(result.metadata.prompt_cache_saved == 0 for result in results)
    assert totals.usd_saved_by_prompt_cache == 0
    assert len(api.requests) == 3


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("how", ["argument", "claude.json"])
def test_it_can_be_switched_off(run: Any, api: Any, edit: Any, how: str) -> None:
    if how == "claude.json":
        edit(performance={"prompt_caching": False, "something": "else"})
    APICache(api)
    run(_ask(4), **({"prompt_caching": False} if how == "argument" else {}))
    assert not any(_marked(request["body"]) for request in api.requests)


def test_a_switch_that_is_neither_on_nor_off_is_refused(make: Any, edit: Any) -> None:
    edit(performance={"prompt_caching": "no"})
    with pytest.raises(ConfigError, match="prompt_caching must be True or False"):
        make()


def test_short_definitions_are_not_marked(run: Any, api: Any) -> None:
    APICache(api)
    run(_ask(4))
    assert not any(_marked(request["body"]) for request in api.requests)


@pytest.mark.usefixtures("long")
def test_what_the_api_does_not_take_is_not_marked_again(run: Any, api: Any) -> None:
    APICache(api, takes=False)
    _, totals = run(_ask(4))
    assert [_marked(request["body"]) for request in api.requests] == [[], [0], [], []]
    assert totals.usd_saved_by_prompt_cache == 0


@pytest.mark.usefixtures("long")
def test_tasks_with_and_without_context_share_what_was_written(run: Any, api: Any) -> None:
    async def ask(it: Any) -> None:
        for number in range(4):
            context = [Context("data", "a file")] if number % 2 else []
            await it.execute_agent("code-reviewer", f"task {number}", model=MODEL, context=context)

    APICache(api)
    run(ask)
    assert [_marked(request["body"]) for request in api.requests] == [[], [0], [0], [0]]
    assert [len(request["body"]["system"]) for request in api.requests] == [1, 2, 1, 2]


def test_the_contract_is_part_of_what_is_written(run: Any, api: Any, config: Path) -> None:
    (config.parent / "contracts" / "writer.contract").write_text("Keep to the facts. " * 200, encoding="utf-8")

    async def ask(it: Any) -> None:
        for number in range(3):
            await it.execute_agent("doc_writer", f"task {number}", model=MODEL)

    APICache(api)
    run(ask)
    assert [_marked(request["body"]) for request in api.requests] == [[], [1], [1]]


@pytest.mark.usefixtures("long")
def test_only_one_of_many_at_once_writes(run: Any, api: Any) -> None:
    async def ask(it: Any) -> None:
        gate = api.default.gate = threading.Event()
        usage = {"input_tokens": 10, "output_tokens": 20, "cache_creation_input_tokens": LENGTH}
        api.default.body = json.dumps(api.message(model=MODEL, usage=usage)).encode()
        tasks = [it.execute_agent("code-reviewer", f"task {number}", model=MODEL) for number in range(10)]
        running = asyncio.gather(*tasks)
        await api.arrived(10)
        gate.set()
        await running
        await it.execute_agent("code-reviewer", "another", model=MODEL)

    run(ask)
    marked = [bool(_marked(request["body"])) for request in api.requests]
    assert sum(marked[:10]) == 1
    assert marked[10]


@pytest.mark.usefixtures("long")
def test_a_writer_that_fails_leaves_it_to_the_next(run: Any, api: Any) -> None:
    api.says("first", 400)
    run(_ask(3))
    assert [_marked(request["body"]) for request in api.requests] == [[], [0], [0]]


@pytest.mark.usefixtures("long")
def test_what_it_saved_is_recorded(run: Any, api: Any) -> None:
    class Listener:
        def __init__(self) -> None:
            self.records: List[Any] = []

        def record(self, record: Any) -> bool:
            self.records.append(record)
            return False

        def flush(self) -> None:
            pass

    tracker = Listener()
    APICache(api)
    run(_ask(3), tracker=tracker, enable_tracking=True)
    saved = [record.prompt_cache_saved for record in tracker.records]
    assert saved == [0.0, pytest.approx(-LENGTH * 1.25 / 1e6), pytest.approx(LENGTH * 4.50 / 1e6)]


class Clock:
    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        return self.now


def _caching(clock: Clock) -> PromptCaching:
    return PromptCaching(PriceList.load(), enabled=True, clock=clock)


def _template(name: str = "a", model: str = MODEL) -> RequestTemplate:
    blocks = (name * 4096,)
    return RequestTemplate("agent", "http://localhost", model, 1, None, Definition(blocks, digest(blocks)))


def test_calls_that_are_rarer_than_every_five_minutes_are_not_marked() -> None:
    clock = Clock()
    caching = _caching(clock)
    for _ in range(4):
        mark = caching.mark(_template())
        assert not mark.wanted
        caching.learn(mark, None)
        clock.now += LIFE_SECONDS


def test_each_use_prolongs_what_was_written_and_a_pause_ends_it() -> None:
    clock = Clock()
    caching = _caching(clock)
    wanted = []
    for pause in (1, 299, 299, 299, 300, 1):
        mark = caching.mark(_template())
        caching.learn(mark, LENGTH if mark.wanted else 0)
        wanted.append(mark.wanted)
        clock.now += pause
    assert wanted == [False, True, True, True, True, False]
    assert caching.mark(_template()).wanted


def test_definitions_and_models_are_kept_apart() -> None:
    caching = _caching(Clock())
    for template in (_template("a"), _template("b"), _template("a", "claude-sonnet-5")):
        assert not caching.mark(template).wanted
    assert all(caching.mark(template).wanted for template in (_template("a"), _template("b")))


_steps = st.lists(st.tuples(st.floats(0, 200), st.sampled_from(["start", "answer", "fail"]), st.integers(0, 9)))


@given(steps=_steps)
def test_one_request_at_a_time_writes_and_what_others_are_to_read_is_there(steps: Any) -> None:
    """Calls that overlap at random, and an API that keeps what it wrote for five minutes after its last use."""
    clock = Clock()
    caching = _caching(clock)
    under_way: List[Mark] = []
    expires = float("-inf")
    for pause, event, index in steps:
        clock.now += pause
        if event == "start":
            mark = caching.mark(_template())
            assert not mark.wanted or mark.writes or clock.now < expires
            under_way.append(mark)
            assert sum(one.writes for one in under_way) <= 1
        elif under_way:
            mark = under_way.pop(index % len(under_way))
            if event == "answer" and mark.wanted:
                expires = max(expires, mark.sent + LIFE_SECONDS)
            caching.learn(mark, (LENGTH if mark.wanted else 0) if event == "answer" else None)
