"""Many callers who want the same value at once, and nobody has it yet: one call has to do for all."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ..bench import STORES, Bench, case
from ..flight_probe import CALL_SECONDS, ask
from ..measuring import Column, Section, percentile
from ..placement import Placement, placements
from ..targets import Target

_CALLERS = 200
_PROCESSES = 4
_ROOT = Path(__file__).resolve().parents[2]
_FLOOR = "floor: 200 tasks await one sleep of 100 ms"
_LIMIT_MS = 105.0
_LIMIT_PROCESSES_MS = 150.0

Round = Tuple[float, int]


@case("flights", "Many callers, one cold key")
async def flights(bench: Bench) -> Section:
    section = Section(
        about=(
            f"{_CALLERS} callers of `get_or_compute` for one key that nobody has, whose value takes a call of 100 ms: "
            f"the time until the last one has it. Over {_PROCESSES} processes they are {_CALLERS // _PROCESSES} in "
            "each, on one Redis, from the word to begin to the last answer. Calls counts all of a round. The ratio "
            "is to the floor."
        ),
        label="who",
        columns=(
            Column("median_ms", "median ms"),
            Column("p99_ms", "p99 ms"),
            Column("ratio", "ratio", 2),
            Column("calls", "most calls in a round"),
        ),
    )
    for placement in placements():
        await _measure(bench, section, placement)
    return section


async def _measure(bench: Bench, section: Section, placement: Placement) -> None:
    found: Dict[str, List[Round]] = {_FLOOR: []}
    across = f"redis, {_PROCESSES} processes"
    with placement.servers():
        urls = {}
        for store in STORES:
            reason = bench.missing(store)
            if reason is None:
                urls[store] = bench.new_url(store)
            elif reason not in section.missing:
                section.missing.append(reason)
    with placement.client():
        async with AsyncExitStack() as stack:
            caches = {store: await stack.enter_async_context(bench.cache(url)) for store, url in urls.items()}
            processes = await _start(stack, urls["redis"], placement) if "redis" in urls else []
            for number in range(bench.pick(2, 20) + 1):
                placement.settle()
                rounds = {_FLOOR: await _floor()}
                for store, cache in caches.items():
                    rounds[store] = await ask(cache, f"flight {number}", _CALLERS)
                if processes:
                    rounds[across] = await asyncio.get_running_loop().run_in_executor(
                        None, _ask_all, processes, f"flight of many {number}"
                    )
                for name, one in rounds.items():
                    if number:
                        found.setdefault(name, []).append(one)
    floor = statistics.median([seconds for seconds, _ in found[_FLOOR]])
    for name, several in found.items():
        median = statistics.median([seconds for seconds, _ in several])
        calls = max(calls for _, calls in several)
        title = f"{name}, {placement.name}"
        section.rows.append(
            {
                "name": title,
                "median_ms": median * 1e3,
                "p99_ms": percentile([seconds for seconds, _ in several], 0.99) * 1e3,
                "ratio": median / floor,
                "calls": calls,
            }
        )
        if name != _FLOOR:
            limit = _LIMIT_PROCESSES_MS if name == across else _LIMIT_MS
            section.targets += [
                Target("one call", title, median * 1e3, limit, "ms"),
                Target("one call", title, calls, 1, "call(s)"),
            ]


async def _floor() -> Round:
    call = asyncio.ensure_future(asyncio.sleep(CALL_SECONDS))

    async def caller() -> None:
        await asyncio.shield(call)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return time.perf_counter() - begin, 1


async def _start(stack: AsyncExitStack, url: str, placement: Placement) -> List[Any]:
    """Start the processes, on two cores half of them on each."""
    processes = []
    for number in range(_PROCESSES):
        with placement.servers() if number % 2 else placement.client():
            process = subprocess.Popen(  # noqa: ASYNC220 - before the clock starts
                [sys.executable, "-m", "benchmarks.flight_probe", url, str(_CALLERS // _PROCESSES)],
                cwd=str(_ROOT),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        processes.append(process)
        stack.callback(process.communicate)
    for process in processes:
        assert process.stdout is not None
        if await asyncio.get_running_loop().run_in_executor(None, process.stdout.readline) != b"ready\n":
            raise RuntimeError("a process did not begin")
    return processes


def _ask_all(processes: List[Any], key: str) -> Round:
    begin = time.perf_counter()
    for process in processes:
        process.stdin.write(f"{key}\n".encode())
        process.stdin.flush()
    calls = sum(json.loads(process.stdout.readline())["calls"] for process in processes)
    return time.perf_counter() - begin, calls
