"""A look-up that says why."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from claude_force_cache import open_cache
from claude_force_orchestrator import AnswerCodec, AsyncAgentOrchestrator, Context, UnknownAgentError


def test_a_hit_has_its_key_its_age_its_life_and_its_tags(run: Any, api: Any) -> None:
    now = 1_800_000_000.0

    async def ask(it: AsyncAgentOrchestrator) -> None:
        nonlocal now
        await it.execute_agent("code-reviewer", "x", tags=["mine"], ttl_hours=1)
        now += 600
        found = await it.explain("code-reviewer", "x")
        assert (found.hit, found.reason, found.age_seconds, found.remaining_seconds) == (True, "fresh", 600, 3000)
        assert found.key is not None
        assert len(found.key) == 64
        assert {"mine", "agent:code-reviewer", "model:claude-haiku-5-5", "tenant:"} < set(found.tags)
        now += 3000
        late = await it.explain("code-reviewer", "x")
        assert (late.hit, late.key) == (False, found.key)

    run(ask, clock=lambda: now)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"task": "y"}, {"task"}),
        ({"model": "claude-opus-5-5"}, {"model"}),
        ({"max_tokens": 7}, {"max_tokens"}),
        ({"temperature": 0.5}, {"temperature"}),
        ({"context": [Context("memory", "y")]}, {"context"}),
        ({"task": "y", "max_tokens": 7}, {"task", "max_tokens"}),
    ],
)
def test_a_miss_names_what_differs_from_the_nearest_request(
    run: Any, api: Any, options: Dict[str, Any], differs: Any
) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x")
        await it.execute_agent("doc_writer", "y", "claude-opus-5-5", max_tokens=7)
        found = await it.explain("code-reviewer", **{"task": "x", **options})
        assert (found.hit, found.reason) == (False, "absent")
        assert found.nearest is not None
        assert set(found.nearest.differs) == differs

    run(ask)
    assert len(api.requests) == 2


def test_an_edited_definition_and_an_edited_contract_are_told_apart(run: Any, api: Any, config: Path) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return await it.explain("doc_writer", "x")

    async def fill(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("doc_writer", "x")

    run(fill, cache=None)
    assert run(ask, cache=None).hit
    file = config.parent / "contracts" / "writer.contract"
    file.write_text("Another contract.\n", encoding="utf-8")
    assert run(ask, cache=None).nearest.differs == ("contract",)
    (config.parent / "agents" / "writer.md").write_text("Another definition.\n", encoding="utf-8")
    assert set(run(ask, cache=None).nearest.differs) == {"definition", "contract"}


def test_another_place_of_the_api_is_told(run: Any, make: Any, api: Any) -> None:
    async def main() -> None:
        async with open_cache("memory://", codec=AnswerCodec()) as cache:
            async with make(cache=cache) as it:
                await it.execute_agent("code-reviewer", "x")
            async with make(cache=cache, base_url="http://127.0.0.1:1") as it:
                found = await it.explain("code-reviewer", "x")
                assert found.nearest is not None
                assert found.nearest.differs == ("endpoint",)

    asyncio.run(main())


def test_the_same_task_is_nearer_than_a_request_that_differs_less(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "y")
        await it.execute_agent("code-reviewer", "x", max_tokens=7, temperature=0.5)
        found = await it.explain("code-reviewer", "x")
        assert found.nearest is not None
        assert set(found.nearest.differs) == {"max_tokens", "temperature"}

    run(ask)


def test_other_reasons_of_a_miss(run: Any, api: Any, edit: Any) -> None:
    now = 1_800_000_000.0

    async def ask(it: AsyncAgentOrchestrator) -> None:
        nonlocal now
        empty = await it.explain("code-reviewer", "x")
        assert (empty.hit, empty.reason, empty.nearest) == (False, "absent", None)
        await it.execute_agent("code-reviewer", "x", ttl_hours=1, stale_if_error_hours=5, tags=["mine"])
        now += 1800
        assert (await it.explain("code-reviewer", "x", max_age_hours=0.1)).reason == "too-old"
        now += 3600
        assert (await it.explain("code-reviewer", "x")).reason == "expired"
        stale = await it.explain("code-reviewer", "x", stale_while_revalidate_hours=2)
        assert (stale.hit, stale.reason, stale.remaining_seconds) == (True, "stale", -1800)
        await it.invalidate(tags=["mine"])
        gone = await it.explain("code-reviewer", "x")
        assert (gone.hit, gone.reason, gone.invalidated_by) == (False, "invalidated", ("mine",))
        assert "mine" in gone.detail

    run(ask, clock=lambda: now)
    assert len(api.requests) == 1


def test_a_variant_is_an_answer_like_another(run: Any, api: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x", variants=40)
        assert (await it.explain("code-reviewer", "x", variants=40)).hit

    run(ask)


def test_a_cache_that_takes_no_part_is_named_as_the_reason(run: Any, api: Any, edit: Any) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> Any:
        return await it.explain("code-reviewer", "x")

    assert run(ask, enable_cache=False).reason == "off"
    edit(cache={"exclude_agents": ["code-reviewer"]})
    assert run(ask).reason == "excluded"
    edit(cache={})
    down = run(ask, cache="redis://127.0.0.1:1/0?timeout=1s")
    assert (down.hit, down.reason, down.key) == (False, "unreachable", None)
    assert "127.0.0.1:1" in down.detail


def test_an_unknown_agent_is_an_error(run: Any) -> None:
    with pytest.raises(UnknownAgentError):
        run(lambda it: it.explain("code-reviever", "x"))


def test_what_is_stored_of_a_request_tells_nothing_about_its_texts(make: Any, api: Any) -> None:
    async def parts(secret: str) -> Any:
        async with open_cache("memory://", codec=AnswerCodec(), secrets=[secret]) as cache, make(cache=cache) as it:
            await it.execute_agent("code-reviewer", "a secret plan", context=[Context("memory", "z")])
            (answer,) = [stored.value async for stored in cache.scan() if stored.value is not None]
            return dict(answer.parts)

    one, other = asyncio.run(parts("one secret, long enough")), asyncio.run(parts("another secret, long enough"))
    shown = {"model", "max_tokens"}
    assert {name for name in one if one[name] == other[name]} == shown
    assert set(one) == {*shown, "endpoint", "definition", "contract", "task", "context"}
    assert not any("secret plan" in value or "You review" in value or api.url in value for value in one.values())


def test_explaining_takes_no_sdk_and_no_call(config: Path, api: Any, tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from claude_force_orchestrator import AsyncAgentOrchestrator\n"
        "async def main():\n"
        f"    options = {{'cache': 'disk://{tmp_path}/cache', 'base_url': {api.url!r}}}\n"
        f"    async with AsyncAgentOrchestrator({str(config)!r}, **options) as it:\n"
        "        print((await it.explain('code-reviewer', 'x')).reason)\n"
        "asyncio.run(main())\n"
        "assert 'anthropic' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "absent\n"), done.stderr
    assert api.requests == []
