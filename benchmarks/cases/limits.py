"""A store at its limit: every set has to make room, however many entries there are."""

from __future__ import annotations

from typing import Any, Dict, List

from claude_force_cache import Cache

from ..bench import STORES, Bench, case, key
from ..measuring import Column, Contender, Section, Series, Target, interleave
from ..payloads import value

_LENGTH = 2_000
_LIMIT = 2.0


@case("limits", "A set at the limit")
async def limits(bench: Bench) -> Section:
    section = Section(
        about=(
            "`Cache.set` of new keys with values of 2 KB, sealed, at the default settings, one after another: into a "
            "store with room, and into one that is full, so that each set evicts. The mean has what a store does only "
            "now and then; the target holds for median and mean. The ratio is full to room."
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
            row = await _measure(bench, store, entries)
            section.rows.append(row)
            met = row["ratio"] <= _LIMIT and row["mean_ratio"] <= _LIMIT
            measured = f"{row['ratio']:.2f} (mean {row['mean_ratio']:.2f}) times"
            what = f"set at the limit within {_LIMIT:.0f} times one below it: {row['name']}"
            section.targets.append(Target(what, measured, met))
    return section


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
        rounds, operations = bench.pick((10, max(20, entries // 66)), (50, max(20, entries // 200)))
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
