"""A cached ``execute_agent``: what somebody who repeats a task waits for."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Dict, List, Tuple

from claude_force_orchestrator import AsyncAgentOrchestrator

from ..bench import Bench, case
from ..busy_api import BusyAPI
from ..measuring import Contender, Section, compare, interleave
from ..messages_api import MessagesAPI
from ..payloads import text
from ..placement import placements
from ..targets import Target

_LENGTHS = {"2 KB": 2_000, "20 KB": 20_000}
_STORES = {
    "memory://, verified each time": "memory://",
    "memory://, in-process tier": "memory://?tier_bytes=16MiB",
    "disk://, in-process tier": "disk",
}
_TRACKING = {"tracking off": False, "tracking on": True}
_FLOOR = "await an empty coroutine"
_LIMITS_US = {"2 KB": 15.0, "20 KB": 17.0}
_TRACKING_SECONDS = 0.15
"""How long the tracker needs at most to write what a turn left to it: it gathers for a twentieth of a second."""


@case("executions", "A cached execution")
async def executions(bench: Bench) -> Section:
    count = bench.pick(16, 64)
    tasks = [f"Task {index}: review what follows. {text(str(index), 600)}" for index in range(count)]
    prepared = dict.fromkeys(tasks, object())
    placement = placements(alone=True)[0]

    async def nothing(_: int) -> None:
        return

    async def lookup(index: int) -> object:
        return prepared[tasks[index % len(tasks)]]

    contenders = [Contender(_FLOOR, nothing), Contender("look up a prepared result in a dict", lookup)]
    names: Dict[Tuple[str, str, str], str] = {}
    async with AsyncExitStack() as stack:
        stack.enter_context(placement.client())
        api = stack.enter_context(MessagesAPI())
        orchestrators = []
        for size, length in _LENGTHS.items():
            contenders.append(await _plain_sdk(stack, size, length, tasks))
            for store, url in _STORES.items():
                for tracking, tracked in _TRACKING.items():
                    name = names[size, store, tracking] = f"{size}, {store}, {tracking}"
                    orchestrator = AsyncAgentOrchestrator(
                        _project(bench.folder / f"project-{len(contenders)}"),
                        "no-key-needed",
                        base_url=api.base_url(length),
                        cache=bench.new_url(url) if url == "disk" else url,
                        enable_tracking=tracked,
                    )
                    orchestrators.append(await stack.enter_async_context(orchestrator))
                    await _fill(orchestrator, tasks, length)
                    contenders.append(_contender(name, orchestrator, tasks, tracked=tracked))
        series = await interleave(
            contenders, rounds=bench.pick(2, 30), operations=bench.pick(50, 400), placement=placement
        )
        if any(orchestrator.totals.calls != count for orchestrator in orchestrators):
            raise RuntimeError("what was measured were not hits: the API was called")
    return Section(
        about=(
            f"`execute_agent` over {count} tasks of 600 characters in turn, each answered before through the SDK by a "
            "local server, at the default settings but for what the name says. With tracking on, a thread writes the "
            "records meanwhile. Beside it what a program without a cache pays for the plain SDK and a server that "
            f"answers at once. Everything runs on {placement.name}. The ratio is to the floor."
        ),
        rows=compare(series, to=_FLOOR),
        targets=[
            Target(
                "execution", names[size, store, tracking], series[names[size, store, tracking]].median * 1e6, most, "us"
            )
            for size, most in _LIMITS_US.items()
            for store in _STORES
            if "tier" in store
            for tracking in _TRACKING
        ],
    )


async def _plain_sdk(stack: AsyncExitStack, size: str, length: int, tasks: List[str]) -> Contender:
    import anthropic

    server = stack.enter_context(BusyAPI(latency_ms=0, length=length))
    client = await stack.enter_async_context(
        anthropic.AsyncAnthropic(api_key="no-key-needed", base_url=server.base_url, max_retries=0, timeout=120)
    )
    agent = text("reviewer", 4_000)

    async def ask(index: int) -> object:
        return await client.messages.create(
            model="claude-haiku-5-5",
            max_tokens=4096,
            system=agent,
            messages=[{"role": "user", "content": tasks[index % len(tasks)]}],
        )

    return Contender(f"{size}, the plain SDK, without a cache", ask, most=10)


def _contender(name: str, orchestrator: AsyncAgentOrchestrator, tasks: List[str], *, tracked: bool) -> Contender:
    async def run(index: int) -> object:
        return await orchestrator.execute_agent("reviewer", tasks[index % len(tasks)])

    async def settle() -> None:
        await asyncio.sleep(_TRACKING_SECONDS)

    return Contender(name, run, settle if tracked else None)


def _project(folder: Path) -> Path:
    settings = folder / ".claude"
    (settings / "agents").mkdir(parents=True)
    (settings / "agents" / "reviewer.md").write_text(f"# Reviewer\n\n{text('reviewer', 4_000)}\n", encoding="utf-8")
    table = {"agents": {"reviewer": {"file": "agents/reviewer.md"}}}
    (settings / "claude.json").write_text(json.dumps(table), encoding="utf-8")
    return settings / "claude.json"


async def _fill(orchestrator: AsyncAgentOrchestrator, tasks: List[str], length: int) -> None:
    pairs: List[Any] = [("reviewer", task) for task in tasks]
    for cached in (False, True):
        for result in await orchestrator.execute_multiple(pairs):
            if not result.success or len(result.output) != length or result.metadata.cached is not cached:
                raise RuntimeError(f"not the answer that was expected: {result.errors or result.metadata}")
