"""The event loop's longest stall: what everything else in the program waits for while the cache works."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple

from claude_force_cache import Cache
from claude_force_orchestrator import AsyncAgentOrchestrator

from ..bench import STORES, Bench, case, key
from ..busy_api import BusyAPI
from ..machine import Waiting
from ..measuring import Column, Section, percentile
from ..payloads import text, value
from ..targets import Target
from .batches import sdk_alone

_TICK = 0.001
_WRITERS = 8
_LENGTH = 2_000
_LIMIT_MS = 5.0
_READ = 100
_MOST_SECONDS = 12.0
"""After this a round ends, however little was written."""
_SDK = "floor: the SDK alone, 100 tasks at a time"
_IDLE = "floor: nothing but the ticker"
_HOPS = "floor: an empty function in a thread"


class _Load(NamedTuple):
    """What keeps the loop busy: an operation, given its number; how many of it make a round, and by how many tasks."""

    run: Callable[[int], Awaitable[object]]
    operations: int
    workers: int = 1


class _Round(NamedTuple):
    """How late each tick was, in seconds; the same less what the loop waited for a processor; and the whole."""

    late: List[float]
    own: List[float]
    seconds: float
    done: int


@case("stalls", "Stalls of the event loop")
async def stalls(bench: Bench) -> Section:
    operations = bench.pick(500, 5_000)
    section = Section(
        about=(
            f"A task sleeps for a millisecond, again and again, and notes how late it is woken. Meanwhile {_WRITERS} "
            f"others write {operations:,} entries of 2 KB into a full cache, so that each evicts; or one reads what "
            f"the other cases measure, in turn a hit, 64 hits at once, {_READ} keys by `get_many`, 64 callers of "
            "`get_or_compute` for one new key, and `usage()`, without the in-process tier; or `execute_multiple` has "
            "a batch of new tasks, 100 at a time, and the same once more, with tracking, beside the SDK alone. Own "
            "is without the time in which the loop's thread was ready and the system ran other programs: the worst "
            "of all rounds, and the median over rounds of each one's worst. The target holds for the worst."
        ),
        label="load",
        columns=(
            Column("worst_ms", "worst ms", 2),
            Column("own_ms", "own worst ms", 2),
            Column("median_own_ms", "own median worst ms", 2),
            Column("p99_ms", "own p99 ms", 2),
            Column("per_s", "operations/s", 0),
            Column("done", "operations"),
        ),
    )
    values = [value(f"stall {index}", _LENGTH) for index in range(64)]
    # The garbage collector stops the loop, too, but what other cases have left for it to look at is not this one's.
    gc.collect()
    gc.freeze()
    async with AsyncExitStack() as stack:
        stack.callback(gc.unfreeze)
        pool = stack.enter_context(ThreadPoolExecutor(4))
        loop = asyncio.get_running_loop()
        loads: Dict[str, _Load] = {_HOPS: _Load(lambda _: loop.run_in_executor(pool, int), operations, _WRITERS)}
        for store in STORES:
            reason = bench.missing(store)
            if reason is not None:
                section.missing.append(reason)
                continue
            full = await _full_cache(bench, store, operations, values, stack)
            loads[f"{store}, writes"] = _Load(_writing(full, values), operations, _WRITERS)
            read = await stack.enter_async_context(bench.cache(bench.new_url(store), tier_bytes=0))
            loads[f"{store}, reads"] = _Load(await _reading(read, values), operations // _READ)
        server = stack.enter_context(BusyAPI(latency_ms=50, length=_LENGTH))
        tasks = bench.pick(100, 1_000)
        loads[_SDK] = _Load(lambda _: sdk_alone(server.base_url, tasks), 1)
        loads["tasks, disk"] = _Load(await _executing(bench, stack, server.base_url, tasks), 1)
        rounds = await _rounds(loads, bench.pick(1, 3))
    worst = {name: max(max(one.own) for one in found) * 1e3 for name, found in rounds.items()}
    for name, found in rounds.items():
        worsts = [max(one.own) for one in found]
        done = sum(one.done for one in found)
        row: Dict[str, Any] = {
            "name": name,
            "worst_ms": max(max(one.late) for one in found) * 1e3,
            "own_ms": max(worsts) * 1e3,
            "median_own_ms": statistics.median(worsts) * 1e3,
            "p99_ms": percentile([late for one in found for late in one.own], 0.99) * 1e3,
            "per_s": done / sum(one.seconds for one in found) if done else None,
            "done": done or None,
        }
        section.rows.append(row)
        if not name.startswith("floor"):
            floors = worst[_SDK] if name.startswith("tasks") else max(worst[_IDLE], worst[_HOPS])
            note = f"median of rounds {row['median_own_ms']:.1f}, floor {floors:.1f}"
            if any(one.done < loads[name].operations for one in found):
                note += f"; {done:,} done before the time was up"
            section.targets.append(Target("stall", name, row["own_ms"], _LIMIT_MS, "ms", note=note))
    return section


async def _full_cache(bench: Bench, store: str, writes: int, values: List[Any], stack: AsyncExitStack) -> Cache[Any]:
    url = bench.new_url(store)
    size = await bench.entry_size(values[0])
    if store != "memory":
        await bench.fill(url, entries=writes, size=size)
    full: Cache[Any] = await stack.enter_async_context(bench.cache(url, max_bytes=writes * size))
    if store == "memory":
        for index in range(writes):
            await full.set(key(-1 - index), values[index % 64])
    return full


def _writing(cache: Cache[Any], values: List[Any]) -> Callable[[int], Awaitable[object]]:
    async def write(index: int) -> None:
        await cache.set(key(index), values[index % 64])
        # A memory cache has nothing to wait for, and a loop that never waits would be the stall.
        await asyncio.sleep(0)

    return write


async def _reading(cache: Cache[Any], values: List[Any]) -> Callable[[int], Awaitable[object]]:
    keys = [key(index) for index in range(_READ)]
    for index, one in enumerate(keys):
        await cache.set(one, values[index % 64])

    async def made() -> Any:
        await asyncio.sleep(0.001)
        return values[0]

    async def read(index: int) -> None:
        await cache.get(keys[index % _READ])
        await asyncio.gather(*(cache.get(one) for one in keys[:64]))
        await cache.get_many(keys)
        await asyncio.gather(*(cache.get_or_compute(f"new {index}", made) for _ in range(64)))
        await cache.usage()
        await asyncio.sleep(0)

    return read


async def _executing(
    bench: Bench, stack: AsyncExitStack, base_url: str, count: int
) -> Callable[[int], Awaitable[object]]:
    folder = bench.folder / "stalls"
    folder.mkdir()
    (folder / "agent.md").write_text(text("agent", 4_000), encoding="utf-8")
    (folder / "claude.json").write_text(json.dumps({"agents": {"reviewer": {"file": "agent.md"}}}), encoding="utf-8")
    orchestrator = await stack.enter_async_context(
        AsyncAgentOrchestrator(
            folder / "claude.json",
            "no-key-needed",
            base_url=base_url,
            cache=bench.new_url("disk"),
            max_concurrent=100,
        )
    )
    await orchestrator.execute_agent("reviewer", "imports the SDK, which takes a second")
    task = text("task", 600)

    async def execute(index: int) -> None:
        tasks: List[Any] = [("reviewer", f"{index} {number} {task}") for number in range(count)]
        for _ in range(2):
            for result in await orchestrator.execute_multiple(tasks):
                if not result.success:
                    raise RuntimeError(f"a task failed: {result.errors}")

    return execute


async def _rounds(loads: Dict[str, _Load], rounds: int) -> Dict[str, List[_Round]]:
    """Return what happened in each round, for each load and for none."""
    found: Dict[str, List[_Round]] = {name: [] for name in (_IDLE, *loads)}
    for number in range(rounds):
        for name, load in loads.items():
            gc.collect()
            found[name].append(await _watch(partial(_spread, load, number * load.operations)))
        # As long as the longest of the others: a longer look finds more.
        longest = max(found[name][-1].seconds for name in loads)
        found[_IDLE].append(await _watch(partial(_idle, longest)))
    return found


async def _idle(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


async def _spread(load: _Load, first: int) -> int:
    """Carry out the load's operations, unless the time is up before, and return how many."""
    done = 0
    deadline = time.perf_counter() + _MOST_SECONDS

    async def worker(start: int) -> None:
        nonlocal done
        for index in range(first + start, first + load.operations, load.workers):
            if time.perf_counter() > deadline:
                return
            await load.run(index)
            done += 1

    await asyncio.gather(*[worker(start) for start in range(load.workers)])
    return done


async def _watch(work: Callable[[], Awaitable[int]]) -> _Round:
    """Return by how many seconds each tick was late while ``work`` ran, how long it ran, and what it returned."""
    late: List[float] = []
    own: List[float] = []
    waiting = Waiting()

    async def tick() -> None:
        while True:
            before, due = waiting.seconds(), time.perf_counter() + _TICK
            await asyncio.sleep(_TICK)
            late.append(max(0.0, time.perf_counter() - due))
            own.append(max(0.0, late[-1] - (waiting.seconds() - before)))

    ticker = asyncio.ensure_future(tick())
    begin = time.perf_counter()
    try:
        # A tick before and after, so that a stall at either end is seen too.
        await asyncio.sleep(2 * _TICK)
        done = await work()
        await asyncio.sleep(2 * _TICK)
    finally:
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
        waiting.close()
    return _Round(late, own, time.perf_counter() - begin, done)
