"""Opening a cache that is there already, and asking what it holds: neither may depend on how much that is."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, Sequence

from ..bench import STORES, Bench, case
from ..measuring import Column, Contender, Section, interleave
from ..payloads import noise
from ..placement import placements
from ..targets import Target

_SIZE = 1_300
"""What a sealed answer of 2 KB takes, in bytes."""
_LIMIT_MS = 20.0
_LIMIT_GROWTH = 1.3
_LIMIT_MB = 1.0
_ROOT = Path(__file__).resolve().parents[2]


@case("opening", "Opening a cache, and its account")
async def opening(bench: Bench) -> Section:
    sizes = (0, 1_000, bench.pick(5_000, 100_000))
    section = Section(
        about=(
            "`Cache.open()` in a fresh process, for each round and size a new one, with all modules imported before; "
            "files are in the system's file cache. Memory is the growth of the resident set. The first look-up, a "
            "miss, comes right after. `usage()` is asked in this process, over and over; of memory, the backend "
            "itself. The ratios are to the store with 1,000 entries."
        ),
        label="store, entries",
        columns=(
            Column("open_ms", "open, median ms", 2),
            Column("open_most_ms", "most ms", 2),
            Column("open_ratio", "ratio", 2),
            Column("lookup_ms", "first look-up ms", 2),
            Column("grown_mb", "grown by MB", 2),
            Column("usage_us", "usage(), median us"),
            Column("usage_p99_us", "p99 us"),
            Column("usage_ratio", "ratio", 2),
        ),
    )
    for store in STORES:
        reason = bench.missing(store)
        if reason is not None:
            section.missing.append(reason)
            continue
        bench.say(f"  {store}")
        with bench.attempt(section, store):
            rows = await _measure(bench, store, sizes)
            section.rows += rows.values()
            section.targets += _judge(store, rows[sizes[1]], rows[sizes[2]])
    return section


async def _measure(bench: Bench, store: str, sizes: Sequence[int]) -> Dict[int, Dict[str, Any]]:
    rows: Dict[int, Dict[str, Any]] = {entries: {"name": f"{store}, {entries:,}"} for entries in sizes}
    urls = {entries: bench.new_url(store) for entries in sizes}
    if store != "memory":
        for entries, url in urls.items():
            await bench.fill(url, entries=entries, size=_SIZE)
        await _open(bench, urls, rows)
    await _usage(bench, store, urls, rows)
    return rows


def _judge(store: str, few: Dict[str, Any], many: Dict[str, Any]) -> List[Target]:
    targets = []
    if store != "memory":
        targets = [
            Target("opening", many["name"], many["open_ms"], _LIMIT_MS, "ms"),
            Target("opening", f"{many['name']}, to 1,000", many["open_ms"] / few["open_ms"], _LIMIT_GROWTH, "times"),
            Target(
                "opening",
                f"{many['name']}, more memory than 1,000",
                many["grown_mb"] - few["grown_mb"],
                _LIMIT_MB,
                "MB",
            ),
        ]
    if store != "memcached":
        targets.append(Target("usage", f"{many['name']}, to 1,000", many["usage_ratio"], _LIMIT_GROWTH, "times"))
    return targets


async def _open(bench: Bench, urls: Dict[int, str], rows: Dict[int, Dict[str, Any]]) -> None:
    found: Dict[int, List[Dict[str, float]]] = {entries: [] for entries in urls}
    for _ in range(bench.pick(1, 11)):
        for entries, url in urls.items():
            found[entries].append(await _probe(url, entries))
    base = _median(found[1_000], "open_s")
    for entries, probes in found.items():
        rows[entries].update(
            open_ms=_median(probes, "open_s") * 1e3,
            open_most_ms=max(probe["open_s"] for probe in probes) * 1e3,
            open_ratio=_median(probes, "open_s") / base,
            lookup_ms=_median(probes, "lookup_s") * 1e3,
            grown_mb=_median(probes, "grown_bytes") / 1e6,
        )


def _median(probes: List[Dict[str, float]], name: str) -> float:
    return statistics.median([probe[name] for probe in probes])


async def _probe(url: str, entries: int) -> Dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.opening_probe", url, cwd=str(_ROOT), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    figures: Dict[str, float] = json.loads(output)
    if figures["entries"] != entries:
        raise RuntimeError(f"the process found {figures['entries']} entries and not {entries}")
    return figures


async def _usage(bench: Bench, store: str, urls: Dict[int, str], rows: Dict[int, Dict[str, Any]]) -> None:
    placement = placements(alone=True)[0]
    with placement.client():
        async with AsyncExitStack() as stack:
            contenders = []
            for entries, url in urls.items():
                if store == "memory":  # nothing of it outlives its backend, so it is filled here
                    backend = bench.backend(url)
                    await backend.open()
                    stack.push_async_callback(backend.close)
                    data = noise(_SIZE - 64)
                    for index in range(entries):
                        await backend.set(f"{index:064x}", data, ttl=86400.0)
                    contenders.append(Contender(str(entries), _asker(backend.usage)))
                else:
                    cache = await stack.enter_async_context(bench.cache(url, max_bytes="none"))
                    contenders.append(Contender(str(entries), _asker(cache.usage)))
            # Memcached lists all that it has for each answer.
            operations = bench.pick(1, 3) if store == "memcached" else bench.pick(50, 200)
            series = await interleave(contenders, rounds=bench.pick(2, 15), operations=operations, placement=placement)
    base = series["1000"].median
    for entries in urls:
        timings = series[str(entries)]
        rows[entries].update(
            usage_us=timings.median * 1e6, usage_p99_us=timings.p99 * 1e6, usage_ratio=timings.median / base
        )


def _asker(usage: Callable[[], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
    return lambda _: usage()
