"""A store at its limit: every set has to make room, however many entries there are."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Awaitable, Callable, Dict, List

from claude_force_cache import Cache

from ..bench import STORES, Bench, case, key
from ..measuring import Column, Contender, Section, Series, interleave
from ..payloads import noise, value
from ..placement import placements
from ..targets import Target

_LENGTH = 2_000
_LIMIT = 2.0
_BACKEND_ENTRIES = (1_000, 100_000)
_BACKEND_LIMIT = 1.3
_BACKEND_LIMIT_US = 6.0


@case("limits", "A set at the limit")
async def limits(bench: Bench) -> Section:
    section = Section(
        about=(
            "`Cache.set` of new keys with values of 2 KB, sealed, at the default settings, one after another: into a "
            "store with room, and into one that is full, so that each set evicts. The mean has what a store does "
            "only now and then; the target holds for median and mean. The ratio is full to room. The lines of the "
            "memory backend are its own `set`, below sealing and events, as it does with values of 2 KB and a life."
        ),
        label="store, entries",
        columns=(
            Column("room_us", "room, median us"),
            Column("full_us", "full, median us"),
            Column("ratio", "ratio", 2),
            Column("room_mean_us", "room, mean us"),
            Column("full_mean_us", "full, mean us"),
            Column("mean_ratio", "ratio", 2),
            Column("full_p99_us", "full, p99 us"),
            Column("evicted", "evicted per set", 2),
        ),
    )
    for store in STORES:
        reason = bench.missing(store)
        if reason is not None:
            section.missing.append(reason)
            continue
        for entries in (1_000, bench.pick(5_000, 50_000)):
            bench.say(f"  {store}, {entries:,} entries")
            with bench.attempt(section, f"{store}, {entries:,} entries"):
                row = await _measure(bench, store, entries)
                section.rows.append(row)
                section.targets += [
                    Target("limit", f"{row['name']}: median", row["ratio"], _LIMIT, "times"),
                    Target("limit", f"{row['name']}: mean", row["mean_ratio"], _LIMIT, "times"),
                ]
    with bench.attempt(section, "memory backend"):
        await _memory_backend(bench, section)
    return section


async def _memory_backend(bench: Bench, section: Section) -> None:
    """Measure the backend's own verb with few entries and many, each beside a backend that has room."""
    data = noise(_LENGTH)
    placement = placements(alone=True)[0]
    contenders = []
    with placement.client():
        async with AsyncExitStack() as stack:
            for entries in _BACKEND_ENTRIES:
                amount = entries * (64 + len(data))
                for name, limit in (("room", 4 * amount), ("full", amount)):
                    backend = bench.backend("memory://", max_bytes=limit)
                    await backend.open()
                    stack.push_async_callback(backend.close)
                    for index in range(entries):
                        await backend.set(f"{-1 - index:064x}", data, ttl=86400.0)
                    contenders.append(Contender(f"{entries} {name}", _backend_setter(backend, data)))
            series = await interleave(
                contenders, rounds=bench.pick(3, 30), operations=bench.pick(100, 1000), placement=placement
            )
    for entries in _BACKEND_ENTRIES:
        pair = {name: series[f"{entries} {name}"] for name in ("room", "full")}
        section.rows.append(_row(f"memory backend, {entries:,}", pair, 1.0))
        full = pair["full"].median * 1e6
        section.targets.append(Target("memory limit", f"{entries:,} entries", full, _BACKEND_LIMIT_US, "us"))
    few, many = (series[f"{entries} full"].median for entries in _BACKEND_ENTRIES)
    section.targets.append(Target("memory limit", "many to few", many / few, _BACKEND_LIMIT, "times"))


def _backend_setter(backend: Any, data: bytes) -> Callable[[int], Awaitable[object]]:
    names = [f"{index:064x}" for index in range(40_000)]
    return lambda index: backend.set(names[index], data, ttl=86400.0)


async def _measure(bench: Bench, store: str, entries: int) -> Dict[str, Any]:
    values = [value(f"limit {index}", _LENGTH) for index in range(64)]
    room_url, full_url = bench.new_url(store), bench.new_url(store)
    size = await bench.entry_size(values[0])
    amount = entries * size
    if store != "memory":
        await bench.fill(room_url, entries=entries, size=size)
        amount = await bench.fill(full_url, entries=entries, size=size)
    async with bench.cache(room_url, max_bytes=4 * amount) as room, bench.cache(full_url, max_bytes=amount) as full:
        if store == "memory":  # it has no inside that outlives a cache, so this one fills itself
            for cache in (room, full):
                for index in range(entries):
                    await cache.set(key(-1 - index), values[index % 64])
        # A store that makes room for many sets at once does so several times within these.
        rounds, operations = bench.pick((3, max(20, entries // 100)), (50, max(20, entries // 200)))
        evicted = full.stats().evictions
        series = await interleave(
            [_setter("room", room, values), _setter("full", full, values)], rounds=rounds, operations=operations
        )
        evicted = full.stats().evictions - evicted
        usage = await full.usage()
        if room.stats().evictions or not evicted or usage.bytes > amount or full.stats().errors:
            raise RuntimeError(f"{store} is not what was to be measured: {room.stats()}, {full.stats()}, {usage}")
        return _row(f"{store}, {entries:,}", series, evicted / ((rounds + 1) * operations))


def _setter(name: str, cache: Cache[Any], values: List[Any]) -> Contender:
    async def run(index: int) -> object:
        return await cache.set(key(index), values[index % 64])

    return Contender(name, run)


def _row(name: str, series: Dict[str, Series], evicted: float) -> Dict[str, Any]:
    room, full = series["room"], series["full"]
    return {
        "name": name,
        "room_us": room.median * 1e6,
        "full_us": full.median * 1e6,
        "ratio": full.median / room.median,
        "room_mean_us": room.mean * 1e6,
        "full_mean_us": full.mean * 1e6,
        "mean_ratio": full.mean / room.mean,
        "full_p99_us": full.p99 * 1e6,
        "evicted": evicted,
    }
