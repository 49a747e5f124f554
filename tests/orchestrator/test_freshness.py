"""How old an answer may be: by call, by agent, by project; and answers that are invalidated by name."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Dict, List

import pytest

from claude_force_cache import open_cache
from claude_force_orchestrator import (
    AnswerCodec,
    AsyncAgentOrchestrator,
    AuthenticationError,
    BadRequestError,
    ConfigError,
    InvalidTaskError,
    PermissionDeniedError,
    ProjectError,
    RateLimitError,
    SpendLimitError,
)

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += hours * HOUR


@pytest.fixture
def clock() -> Clock:
    return Clock()


def agents(**cache: Any) -> Dict[str, Any]:
    return {
        "code-reviewer": {"file": "agents/reviewer.md", **({"cache": cache} if cache else {})},
        "doc_writer": {"file": "agents/writer.md"},
    }


async def settled(it: AsyncAgentOrchestrator, api: Any, count: int) -> None:
    await api.arrived(count)
    for _ in range(3000):
        result = await it.execute_agent("code-reviewer", "x", cache="only-if-cached")
        if result.success and result.metadata.cache_age_seconds == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the new answer was never stored")


@pytest.mark.parametrize("where", ["call", "agent", "section"])
def test_an_answer_in_use_is_asked_for_again_before_it_is_late(
    run: Any, api: Any, edit: Any, clock: Clock, where: str
) -> None:
    ahead = {"refresh_ahead": 0.25}
    edit(cache=ahead if where == "section" else {}, agents=agents(**(ahead if where == "agent" else {})))
    options = ahead if where == "call" else {}

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x", **options)
        clock.pass_hours(17.9)
        assert (await it.execute_agent("code-reviewer", "x", **options)).metadata.cached
        clock.pass_hours(0.2)
        results = await asyncio.gather(*(it.execute_agent("code-reviewer", "x", **options) for _ in range(20)))
        assert {(result.metadata.cached, result.metadata.stale) for result in results} == {(True, False)}
        await settled(it, api, 2)
        clock.pass_hours(17.9)
        assert (await it.execute_agent("code-reviewer", "x", **options)).metadata.cached
        assert it.totals.calls == 2

    run(ask, clock=clock)
    assert len(api.requests) == 2


@pytest.mark.parametrize("where", ["call", "agent", "section"])
def test_a_life_is_that_of_the_call_else_the_agent_else_the_section(
    run: Any, api: Any, edit: Any, clock: Clock, where: str
) -> None:
    levels = ["section", "agent", "call"]
    said = {level: 10.0 ** (3 - levels.index(level)) for level in levels[: levels.index(where) + 1]}
    edit(
        cache={"ttl_hours": said["section"]}, agents=agents(**({"ttl_hours": said["agent"]} if "agent" in said else {}))
    )
    options = {"ttl_hours": said["call"]} if "call" in said else {}

    async def ask(it: AsyncAgentOrchestrator) -> List[bool]:
        cached = []
        for hours in (0, said[where] * 0.99, said[where] * 0.02):
            clock.pass_hours(hours)
            cached.append((await it.execute_agent("code-reviewer", "x", **options)).metadata.cached)
        return cached

    assert run(ask, clock=clock) == [False, True, False]


@pytest.mark.parametrize("where", ["call", "agent", "section"])
def test_an_answer_of_the_age_that_is_too_much_is_asked_for_again(
    run: Any, api: Any, edit: Any, clock: Clock, where: str
) -> None:
    bound = {"max_age_hours": 2}
    edit(
        cache={**({"max_age_hours": 5} if where != "section" else bound)},
        agents=agents(**(bound if where == "agent" else {"max_age_hours": 1} if where == "call" else {})),
    )
    options = bound if where == "call" else {}

    async def ask(it: AsyncAgentOrchestrator) -> List[bool]:
        cached = []
        for hours in (0, 1.9, 0.2, 1):
            clock.pass_hours(hours)
            cached.append((await it.execute_agent("code-reviewer", "x", **options)).metadata.cached)
        return cached

    assert run(ask, clock=clock) == [False, True, False, True]


def test_a_stale_answer_is_given_at_once_while_one_call_makes_a_new_one(
    run: Any, api: Any, edit: Any, clock: Clock
) -> None:
    edit(cache={}, agents=agents(ttl_hours=1, stale_while_revalidate_hours=2))
    api.says("old", "new", "newest")

    async def ask(it: AsyncAgentOrchestrator) -> None:
        assert (await it.execute_agent("code-reviewer", "x")).output == "old"
        clock.pass_hours(1.5)
        results = await asyncio.gather(*(it.execute_agent("code-reviewer", "x") for _ in range(20)))
        assert {result.output for result in results} <= {"old", "new"}
        first = results[0]
        assert (first.output, first.metadata.cached, first.metadata.stale) == ("old", True, True)
        assert first.metadata.cache_age_seconds == 1.5 * HOUR
        await settled(it, api, 2)
        after = await it.execute_agent("code-reviewer", "x")
        assert (after.output, after.metadata.stale) == ("new", False)
        clock.pass_hours(3.1)
        late = await it.execute_agent("code-reviewer", "x")
        assert (late.output, late.metadata.cached, late.metadata.stale) == ("newest", False, False)

    run(ask, clock=clock)
    assert len(api.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503, 529, 408])
def test_an_old_answer_stands_in_while_the_api_is_down(run: Any, api: Any, clock: Clock, status: int) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        options: Dict[str, Any] = {"ttl_hours": 1, "stale_if_error_hours": 5}
        await it.execute_agent("code-reviewer", "x", **options)
        clock.pass_hours(2)
        api.default = api.reply(status=status)
        result = await it.execute_agent("code-reviewer", "x", **options)
        assert (result.success, result.metadata.cached, result.metadata.stale) == (True, True, True)
        assert result.metadata.cache_age_seconds == 2 * HOUR
        clock.pass_hours(5)
        assert not (await it.execute_agent("code-reviewer", "x", **options)).success

    run(ask, clock=clock, max_retries=0)


def test_an_api_that_is_out_of_reach_or_silent_is_down_too(run: Any, api: Any, clock: Clock) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        options: Dict[str, Any] = {"ttl_hours": 1, "stale_if_error_hours": 5}
        await it.execute_agent("code-reviewer", "x", **options)
        clock.pass_hours(2)
        for reply in (api.reply(drop=True), api.reply(delay=1.0)):
            api.says(reply)
            assert (await it.execute_agent("code-reviewer", "x", **options)).metadata.stale

    run(ask, clock=clock, max_retries=0, timeout_seconds=0.3)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (429, SpendLimitError),
    ],
)
def test_no_old_answer_hides_what_does_not_pass(run: Any, api: Any, clock: Clock, status: int, kind: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        options: Dict[str, Any] = {"ttl_hours": 1, "stale_if_error_hours": 5}
        await it.execute_agent("code-reviewer", "x", **options)
        clock.pass_hours(2)
        details = {"error_code": "enforced_spend_limit_reached"}
        api.default = api.reply(api.failure(status, **({"details": details} if status == 429 else {})), status=status)
        result = await it.execute_agent("code-reviewer", "x", **options)
        assert isinstance(result.error, kind)

    run(ask, clock=clock, max_retries=0)


def test_without_being_asked_no_old_answer_is_given(run: Any, api: Any, clock: Clock) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x", ttl_hours=1)
        clock.pass_hours(2)
        api.default = api.reply(status=429)
        assert isinstance((await it.execute_agent("code-reviewer", "x")).error, RateLimitError)

    run(ask, clock=clock, max_retries=0)


@pytest.mark.parametrize("where", ["call", "agent", "section"])
def test_variants_are_as_many_answers_and_calls_as_were_wanted(run: Any, api: Any, edit: Any, where: str) -> None:
    wanted = {"variants": 3}
    edit(cache=wanted if where == "section" else {}, agents=agents(**(wanted if where == "agent" else {})))
    options = wanted if where == "call" else {}
    api.says("a", "b", "c")

    async def ask(it: AsyncAgentOrchestrator) -> None:
        results = await asyncio.gather(*(it.execute_agent("code-reviewer", "x", **options) for _ in range(200)))
        assert {result.output for result in results} == {"a", "b", "c"}
        again = [await it.execute_agent("code-reviewer", "x", **options) for _ in range(100)]
        assert {result.output for result in again} == {"a", "b", "c"}
        assert all(result.metadata.cached for result in again)
        other = await it.execute_agent("code-reviewer", "x", variants=1)
        assert other.metadata.cached

    run(ask)
    assert len(api.requests) == 3


def test_any_variant_will_do_where_no_call_may_be_made(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x")
        for _ in range(20):
            assert (await it.execute_agent("code-reviewer", "x", variants=50, cache="only-if-cached")).success

    run(ask)


def test_an_agent_may_be_left_out_of_the_cache(run: Any, api: Any, edit: Any) -> None:
    edit(agents=agents(enabled=False))

    async def ask(it: AsyncAgentOrchestrator) -> List[bool]:
        names = ["code-reviewer", "code-reviewer", "doc_writer", "doc_writer"]
        return [(await it.execute_agent(name, "x")).metadata.cached for name in names]

    assert run(ask) == [False, False, False, True]


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ([], "'cache' must be an object"),
        ({"enabled": "no"}, "cache.enabled must be true or false"),
        ({"ttl_hours": 0}, "cache.ttl_hours must be a number above 0"),
        ({"max_age_hours": -1}, "cache.max_age_hours must be a number of at least 0"),
        ({"stale_if_error_hours": "1"}, "cache.stale_if_error_hours"),
        ({"variants": 0}, "cache.variants must be a whole number of at least 1 and at most 100"),
        ({"variants": 1.5}, "cache.variants"),
    ],
)
def test_what_an_agent_cannot_have_is_refused(make: Any, edit: Any, cache: Any, words: str) -> None:
    table = agents()
    table["code-reviewer"]["cache"] = cache
    edit(agents=table)
    with pytest.raises(ProjectError) as caught:
        make()
    assert words in str(caught.value)
    assert "'code-reviewer'" in str(caught.value)


def test_the_section_is_checked_alike(make: Any, edit: Any) -> None:
    edit(cache={"stale_while_revalidate_hours": -1})
    with pytest.raises(ProjectError, match=r"cache\.stale_while_revalidate_hours"):
        make()


def test_keys_without_meaning_are_told(make: Any, edit: Any, caplog: pytest.LogCaptureFixture) -> None:
    edit(agents=agents(ttl=5))
    make()
    assert "ttl" in caplog.text


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ({"agent": "code-reviewer"}, {0, 1, 2}),
        ({"agent": "doc_writer"}, {3}),
        ({"model": "claude-opus-5-5"}, {1}),
        ({"workflow": "both"}, {2, 3}),
        ({"tags": ["mine"]}, {0}),
        ({"tags": ["mine"], "model": "claude-opus-5-5"}, {0, 1}),
        ({"agent": "nobody"}, set()),
    ],
)
def test_answers_are_invalidated_by_name(run: Any, api: Any, name: Dict[str, Any], gone: Any) -> None:
    asked: List[Any] = [
        ("code-reviewer", "a", {"tags": ["mine", "other"]}),
        ("code-reviewer", "b", {"model": "claude-opus-5-5"}),
        ("code-reviewer", "c", {"workflow_name": "both"}),
        ("doc_writer", "d", {"workflow_name": "both"}),
    ]

    async def ask(it: AsyncAgentOrchestrator) -> None:
        for agent, task, options in asked:
            await it.execute_agent(agent, task, **options)
        assert await it.invalidate(**name) == (len(name) if gone else 0)
        cached = [(await it.execute_agent(agent, task, **options)).metadata.cached for agent, task, options in asked]
        assert {index for index, hit in enumerate(cached) if not hit} == gone

    run(ask)


def test_one_state_of_an_agent_is_invalidated_by_its_digest(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x")
        explained = await it.explain("code-reviewer", "x")
        (version,) = [tag for tag in explained.tags if "@" in tag]
        await it.invalidate(agent=version[len("agent:") :])
        assert not (await it.execute_agent("code-reviewer", "x")).metadata.cached

    run(ask)


def test_names_of_any_length_and_script_are_tags(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        for workflow in ("w" * 5000, "\u00e9\U0001f600" * 100, "\ud800"):
            await it.execute_agent("code-reviewer", "x", workflow_name=workflow)
            assert await it.invalidate(workflow=workflow) == 1
            assert not (await it.execute_agent("code-reviewer", "x")).metadata.cached
            await it.invalidate(agent="code-reviewer")

    run(ask)


def test_nothing_to_invalidate_is_an_error(run: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        for names in ({}, {"agent": ""}, {"tags": ["agent:x"]}, {"model": 5}):
            with pytest.raises(InvalidTaskError):
                await it.invalidate(**names)

    run(ask)

    async def off(it: AsyncAgentOrchestrator) -> None:
        with pytest.raises(ConfigError, match="switched off"):
            await it.invalidate(agent="x")

    run(off, enable_cache=False)


def test_tenants_do_not_invalidate_each_others_answers(make: Any, api: Any) -> None:
    async def main() -> None:
        async with open_cache("memory://", codec=AnswerCodec()) as one, make(cache=one) as it:
            await it.execute_agent("code-reviewer", "x")
            assert "tenant:" in (await it.explain("code-reviewer", "x")).tags
        async with open_cache("memory://?tenant=acme", codec=AnswerCodec()) as two, make(cache=two) as it:
            await it.execute_agent("code-reviewer", "x")
            assert "tenant:acme" in (await it.explain("code-reviewer", "x")).tags

    asyncio.run(main())


@pytest.mark.parametrize("given", [False, True])
def test_a_call_in_the_background_is_finished_before_the_orchestrator_closes(
    make: Any, api: Any, clock: Clock, tmp_path: Any, given: bool
) -> None:
    url = f"disk://{tmp_path}/answers"
    gate = threading.Event()
    options = {"ttl_hours": 1, "stale_while_revalidate_hours": 5}

    async def main() -> None:
        cache = open_cache(url, codec=AnswerCodec(), clock=clock) if given else url
        async with make(cache=cache, clock=clock) as it:
            await it.execute_agent("code-reviewer", "x", **options)
            clock.pass_hours(2)
            api.says(api.reply(gate=gate))
            assert (await it.execute_agent("code-reviewer", "x", **options)).metadata.stale
            await api.arrived(2)
            closing = asyncio.ensure_future(it.close())
            await asyncio.sleep(0)
            gate.set()
            await closing
            assert it.totals.calls == 2
        if not isinstance(cache, str):
            await cache.close()
        async with make(cache=url, clock=clock) as it:
            result = await it.execute_agent("code-reviewer", "x", cache="only-if-cached")
            assert result.metadata.cache_age_seconds == 0

    asyncio.run(main())
    assert len(api.requests) == 2


def test_everything_is_all_answers_of_the_tenant(make: Any, api: Any, tmp_path: Any) -> None:
    async def main() -> None:
        url = f"disk://{tmp_path}/answers?tier_bytes=0&tenant="
        async with make(cache=f"{url}one") as one, make(cache=f"{url}two") as two:
            for it in (one, two):
                await it.execute_agent("code-reviewer", "x")
                await it.execute_agent("doc_writer", "x")
            assert await one.invalidate(everything=True) == 1
            for it, cached in ((one, False), (two, True)):
                assert (await it.execute_agent("code-reviewer", "x")).metadata.cached is cached
                assert (await it.execute_agent("doc_writer", "x")).metadata.cached is cached

    asyncio.run(main())


def test_everything_is_invalidated_only_where_nothing_else_is_named(run: Any, make: Any, api: Any) -> None:
    async def test(orchestrator: AsyncAgentOrchestrator) -> None:
        await orchestrator.execute_agent("code-reviewer", "Review this.")
        for named in ({"agent": "doc_writer"}, {"model": "m"}, {"workflow": "w"}, {"tags": ["t"]}):
            with pytest.raises(InvalidTaskError, match="give it alone"):
                await orchestrator.invalidate(everything=True, **named)
        assert (await orchestrator.execute_agent("code-reviewer", "Review this.")).metadata.cached

    run(test)


def test_an_option_that_claims_to_equal_nothing_is_refused(run: Any) -> None:
    class Agreeing:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    result = run(lambda it: it.execute_agent("code-reviewer", "x", ttl_hours=Agreeing()))
    assert isinstance(result.error, InvalidTaskError)
