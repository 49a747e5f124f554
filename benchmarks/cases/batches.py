"""A batch of tasks that nobody asked before: what everything adds to the work that the SDK does anyway."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List

from claude_force_orchestrator import AsyncAgentOrchestrator

from ..bench import Bench, case
from ..busy_api import BusyAPI
from ..measuring import Column, Section
from ..placement import Placement, placements
from ..targets import Target

_CONCURRENT = 100
_LATENCY_MS = 50
_ALONE = "floor: the SDK alone"
_JUDGED = {"everything on, disk": "disk", "everything on, memory": "memory"}
_CONTENDERS: Dict[str, Dict[str, Any]] = {
    "everything on, disk": {},
    "everything on, memory": {},
    "tracking off, memory": {"enable_tracking": False},
    "tracking and cache off": {"enable_tracking": False, "enable_cache": False},
}
_LIMIT = 1.1
_KEY = "no-key-needed"


@case("batches", "A batch of new tasks")
async def batches(bench: Bench) -> Section:
    tasks = bench.pick(80, 1_000)
    ideal = tasks / _CONCURRENT * _LATENCY_MS / 1e3
    section = Section(
        about=(
            f"`execute_multiple` of {tasks:,} tasks that nobody asked before, {_CONCURRENT} at a time, against a "
            f"server in a process of its own that takes {_LATENCY_MS} ms for each: ideally {ideal * 1e3:.0f} ms. The "
            "SDK alone is as many calls of `messages.create` behind a semaphore. On top is what ours took beyond "
            "what the SDK needs over the ideal; its ratio to the ideal is what the target is about."
        ),
        columns=(
            Column("median_ms", "median ms"),
            Column("most_ms", "most ms"),
            Column("to_ideal", "to the ideal", 2),
            Column("ratio", "to the SDK alone", 2),
            Column("on_top", "on top of the SDK, to the ideal", 2),
            Column("per_task_us", "added per task, us"),
        ),
    )
    for placement in placements():
        bench.say(f"  {placement.name}")
        found = await _rounds(bench, tasks, placement)
        alone = statistics.median(found[_ALONE])
        for name, seconds in found.items():
            median = statistics.median(seconds)
            title = f"{name}, {placement.name}"
            on_top = (median - (alone - ideal)) / ideal
            section.rows.append(
                {
                    "name": title,
                    "median_ms": median * 1e3,
                    "most_ms": max(seconds) * 1e3,
                    "to_ideal": median / ideal,
                    "ratio": median / alone,
                    "on_top": on_top,
                    "per_task_us": (median - alone) / tasks * 1e6,
                }
            )
            if name in _JUDGED:
                note = f"the SDK alone took {alone * 1e3:.0f} ms, ours {median * 1e3:.0f} ms"
                section.targets.append(Target("batch", title, on_top, _LIMIT, "times", note=note))
    return section


async def _rounds(bench: Bench, tasks: int, placement: Placement) -> Dict[str, List[float]]:
    found: Dict[str, List[float]] = {name: [] for name in (_ALONE, *_CONTENDERS)}
    with ExitStack() as stack:
        with placement.servers():
            server = stack.enter_context(BusyAPI(latency_ms=_LATENCY_MS))
        with placement.client():
            for number in range(bench.pick(1, 4) + 1):
                for name, taken in found.items():
                    placement.settle()
                    if name == _ALONE:
                        seconds = await sdk_alone(server.base_url, tasks)
                    else:
                        folder = bench.folder / f"batch-{placement.name}-{number}-{name}".replace(" ", "-")
                        seconds = await _orchestrated(bench, name, server.base_url, folder, tasks)
                    if number:
                        taken.append(seconds)
    return found


async def sdk_alone(url: str, tasks: int) -> float:
    import anthropic

    async with anthropic.AsyncAnthropic(api_key=_KEY, base_url=url, max_retries=0, timeout=120) as client:
        client.messages.with_raw_response  # noqa: B018 - imported late, and not what is measured
        slots = asyncio.Semaphore(_CONCURRENT)

        async def ask(index: int) -> None:
            async with slots:
                await client.messages.create(
                    model="claude-haiku-5-5",
                    max_tokens=4096,
                    system=[{"type": "text", "text": "You review code.\n"}],
                    messages=[{"role": "user", "content": f"Task {index}"}],
                )

        begin = time.perf_counter()
        await asyncio.gather(*map(ask, range(tasks)))
        return time.perf_counter() - begin


async def _orchestrated(bench: Bench, name: str, url: str, folder: Path, tasks: int) -> float:
    folder.mkdir()  # noqa: ASYNC240 - before the clock starts
    (folder / "agent.md").write_text("You review code.\n", encoding="utf-8")
    path = folder / "claude.json"
    path.write_text(json.dumps({"agents": {"reviewer": {"file": "agent.md"}}}), encoding="utf-8")
    cache = bench.new_url(_JUDGED.get(name, "memory"))
    options = {"cache": cache, "max_concurrent": _CONCURRENT, **_CONTENDERS[name]}
    async with AsyncAgentOrchestrator(path, _KEY, base_url=url, **options) as it:
        await it._clients.get()
        begin = time.perf_counter()
        results = await it.execute_multiple([("reviewer", f"Task {index}") for index in range(tasks)])
        seconds = time.perf_counter() - begin
    if not all(result.success and not result.metadata.cached for result in results):
        raise RuntimeError(f"a task failed: {next((it.errors for it in results if not it.success), 'not a new one')}")
    return seconds
