"""The event loop's longest stall: what everything else in the program waits for while the cache works."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple

from claude_force_cache import Cache

from ..bench import STORES, Bench, case, key
from ..machine import Waiting
from ..measuring import Column, Section, Target, percentile
from ..payloads import value

_TICK = 0.001
_WRITERS = 8
_LENGTH = 2_000
_LIMIT_MS = 10.0
_MOST_SECONDS = 15.0
"""After this a round ends, however little was written."""
_IDLE = "floor: nothing but the ticker"
_HOPS = "floor: an empty function in a thread"

Load = Callable[[int], Awaitable[object]]


class _Round(NamedTuple):
    """How late each tick was, in seconds; the same less what the loop waited for a processor; and the whole."""

    late: List[float]
    own: List[float]
    seconds: float
    written: int


@case("stalls", "Stalls of the event loop")
async def stalls(bench: Bench) -> Section:
    writes = bench.pick(1_000, 10_000)
    section = Section(
        about=(
            f"A task sleeps for a millisecond, again and again, and notes how late it is woken, while {_WRITERS} "
            f"others write {writes:,} entries of 2 KB into a full cache, so that as many are evicted. Own "
            "is without the time in which the loop's thread was ready and the system ran other programs: the worst of "
            "all rounds, and the median over rounds of each one's worst. The target holds for the worst."
        ),
        label="load",
        columns=(
            Column("worst_ms", "worst ms", 2),
            Column("own_ms", "own worst ms", 2),
            Column("median_own_ms", "own median worst ms", 2),
            Column("p99_ms", "own p99 ms", 2),
            Column("writes_per_s", "writes/s", 0),
            Column("written", "written"),
            Column("evicted", "evicted"),
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
        loads: Dict[str, Load] = {_HOPS: lambda _: loop.run_in_executor(pool, int)}
        caches: Dict[str, Cache[Any]] = {}
        for store in STORES:
            reason = bench.missing(store)
            if reason is not None:
                section.missing.append(reason)
                continue
            caches[store] = cache = await _full_cache(bench, store, writes, values, stack)
            loads[store] = _writing(cache, values)
        rounds = await _rounds(loads, bench.pick(2, 4), writes)
        evicted = {store: cache.stats().evictions for store, cache in caches.items()}
    floors = max(max(one.own) for name in (_IDLE, _HOPS) for one in rounds[name]) * 1e3
    for name, found in rounds.items():
        worsts = [max(one.own) for one in found]
        written = sum(one.written for one in found)
        row = {
            "name": name,
            "worst_ms": max(max(one.late) for one in found) * 1e3,
            "own_ms": max(worsts) * 1e3,
            "median_own_ms": statistics.median(worsts) * 1e3,
            "p99_ms": percentile([late for one in found for late in one.own], 0.99) * 1e3,
            "writes_per_s": written / sum(one.seconds for one in found) if written else None,
            "written": written or None,
            "evicted": evicted.get(name),
        }
        section.rows.append(row)
        if name in caches:
            section.targets.append(_target(row, floors, writes, all(one.written == writes for one in found)))
    return section


def _target(row: Dict[str, Any], floors: float, writes: int, complete: bool) -> Target:
    measured = f"{row['own_ms']:.1f} ms (median of rounds {row['median_own_ms']:.1f}, floors {floors:.1f})"
    return Target(
        f"no stall over {_LIMIT_MS:.0f} ms while {writes:,} entries are written and evicted: {row['name']}",
        measured if complete else f"{measured}, {row['written']:,} written before the time was up",
        bool(row["own_ms"] <= _LIMIT_MS) and complete,
    )


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


def _writing(cache: Cache[Any], values: List[Any]) -> Load:
    async def write(index: int) -> None:
        await cache.set(key(index), values[index % 64])
        # A memory cache has nothing to wait for, and a loop that never waits would be the stall.
        await asyncio.sleep(0)

    return write


async def _rounds(loads: Dict[str, Load], rounds: int, writes: int) -> Dict[str, List[_Round]]:
    """Return what happened in each round, for each load and for none."""
    found: Dict[str, List[_Round]] = {name: [] for name in (_IDLE, *loads)}
    for number in range(rounds):
        for name, load in loads.items():
            gc.collect()
            found[name].append(await _watch(partial(_spread, load, number * writes, writes)))
        # As long as the longest of the others: a longer look finds more.
        longest = max(found[name][-1].seconds for name in loads)
        found[_IDLE].append(await _watch(partial(_idle, longest)))
    return found


async def _idle(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


async def _spread(load: Load, first: int, count: int) -> int:
    """Carry out ``count`` operations, unless the time is up before, and return how many."""
    done = 0
    deadline = time.perf_counter() + _MOST_SECONDS

    async def worker(start: int) -> None:
        nonlocal done
        for index in range(first + start, first + count, _WRITERS):
            if time.perf_counter() > deadline:
                return
            await load(index)
            done += 1

    await asyncio.gather(*[worker(start) for start in range(_WRITERS)])
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
        written = await work()
        await asyncio.sleep(2 * _TICK)
    finally:
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
        waiting.close()
    return _Round(late, own, time.perf_counter() - begin, written)
