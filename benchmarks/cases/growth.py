"""How cost grows with the number of entries: hits, stores, evictions and memory, from a thousand to a million."""

from __future__ import annotations

import random
import re
import socket
import sqlite3
import time
import tracemalloc
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Iterable, List, Optional, Tuple

from ..bench import STORES, Bench, case, maybe
from ..measuring import Column, Contender, Section, Series, interleave
from ..payloads import noise
from ..placement import placements

_SIZE = 256
"""Bytes of a value. Keys have 64."""
_LIFE = 86_400.0
_BATCH = 1_000
_KEYS = 5_000
"""How many keys are looked up, drawn from all that there are."""
_DATA = noise(_SIZE - 8)
_CHOOSE = random.Random("growth")
_LINES = {
    "hit_us": "hit",
    "floor_us": "floor: look-up without us",
    "room_us": "store",
    "full_us": "store at the limit",
    "full_mean_us": "store at the limit, mean",
}

Operation = Callable[[int], Awaitable[object]]


@case("growth", "How cost grows", seconds=3600.0, alone=True)
async def growth(bench: Bench) -> Section:
    sizes = bench.pick((1_000, 10_000), (1_000, 10_000, 100_000, 1_000_000))
    section = Section(
        about=(
            f"The verbs of each backend with values of {_SIZE} bytes and keys of 64, below sealing and without the "
            "way into a thread and back, which do not depend on how many there are. Keys are looked up at random. "
            "The stores of all sizes exist side by side and take turns. At the limit each set of a new key has to "
            "evict. Overhead is what an entry takes beyond its key and value: in this process, in the folder, in the "
            "server by its own account. The floor is a look-up in the same store without us: a dict, a SELECT, a GET "
            "over a blocking socket. Everything runs on one core."
        ),
        label="store, entries",
        columns=(
            Column("fill_us", "filled in bulk, us per entry"),
            Column("hit_us", "hit, median us", 2),
            Column("hit_p99_us", "p99 us", 2),
            Column("floor_us", "its floor", 2),
            Column("room_us", "store, median us", 2),
            Column("room_mean_us", "mean us", 2),
            Column("full_us", "store at the limit, median us", 2),
            Column("full_mean_us", "mean us", 2),
            Column("full_most_ms", "most ms", 2),
            Column("overhead", "overhead, bytes per entry", 0),
        ),
    )
    placement = placements(alone=True)[0]
    for store in STORES:
        reason = bench.missing(store)
        if reason is not None:
            section.missing.append(reason)
            continue
        begun = time.monotonic()
        rows: Dict[int, Dict[str, float]] = {}
        with bench.attempt(section, store), placement.servers(), placement.client():
            rows = await _measure(bench, store, sizes)
        section.rows += [{"name": f"{store}, {entries:,}", **row} for entries, row in rows.items()]
        bench.say(f"  {store}: {time.monotonic() - begun:.0f} s")
    bench.plot_curves(section, "growth", "Cost by the number of entries", _panels(section), across="entries")
    return section


async def _measure(bench: Bench, store: str, sizes: Tuple[int, ...]) -> Dict[int, Dict[str, float]]:
    rows: Dict[int, Dict[str, float]] = {}
    hits: List[Contender] = []
    stores: List[Contender] = []
    limits: List[Contender] = []
    rounds, operations = bench.pick((4, 100), (10, 1_000))
    async with AsyncExitStack() as stack:
        urls = {entries: bench.new_url(store) for entries in sizes}
        for entries, url in urls.items():
            bench.say(f"  {store}, {entries:,} entries")
            before = _used(store, url)
            backend = await _opened(bench, stack, url)
            begun = time.perf_counter()
            await _fill(backend, entries)
            seconds = time.perf_counter() - begun
            taken = _used(store, url) - before if store != "memory" else await _taken_in_memory(bench, entries)
            rows[entries] = {
                "fill_us": seconds / entries * 1e6,
                "overhead": (taken - (await maybe(backend.usage())).bytes) / entries,
            }
            hits.append(Contender(f"{entries} hit", _getter(backend, entries)))
            hits.append(Contender(f"{entries} floor", await _floor(store, url, entries, stack)))
            stores.append(Contender(f"{entries} room", _setter(backend, entries)))
        series = await interleave(hits, rounds=rounds, operations=operations)
        series.update(await interleave(stores, rounds=rounds, operations=operations // 2))
        for entries, url in urls.items():
            backend = await _full(bench, stack, store, url, entries)
            limits.append(Contender(f"{entries} full", _setter(backend, 2 * entries)))
        series.update(await interleave(limits, rounds=rounds, operations=operations // 2))
    for entries, row in rows.items():
        row.update(_figures(series, entries))
    return rows


def _figures(series: Dict[str, Series], entries: int) -> Dict[str, float]:
    hit, floor, room, full = (series[f"{entries} {name}"] for name in ("hit", "floor", "room", "full"))
    return {
        "hit_us": hit.median * 1e6,
        "hit_p99_us": hit.p99 * 1e6,
        "floor_us": floor.median * 1e6,
        "room_us": room.median * 1e6,
        "room_mean_us": room.mean * 1e6,
        "full_us": full.median * 1e6,
        "full_mean_us": full.mean * 1e6,
        "full_most_ms": max(max(timings) for timings in full.rounds) * 1e3,
    }


async def _opened(bench: Bench, stack: AsyncExitStack, url: str, max_bytes: Optional[int] = None) -> Any:
    backend = bench.backend(url, max_bytes=max_bytes)
    await maybe(backend.open())

    async def close() -> None:
        await maybe(backend.close())

    stack.push_async_callback(close)
    return backend


async def _fill(backend: Any, entries: int) -> None:
    for start in range(0, entries, _BATCH):
        await maybe(backend.set_many(_items(range(start, min(entries, start + _BATCH)))))
    usage = await maybe(backend.usage())
    if usage.entries != entries:
        raise RuntimeError(f"{entries} entries were stored, and {usage.entries} are there")


def _items(indexes: Iterable[int]) -> Dict[str, Tuple[bytes, float]]:
    """Return keys and values, no two of which are one object."""
    return {_name(index): (_DATA + index.to_bytes(8, "big"), _LIFE) for index in indexes}


def _name(index: int) -> str:
    return f"{index:064x}"


async def _full(bench: Bench, stack: AsyncExitStack, store: str, url: str, entries: int) -> Any:
    """Return a backend on the same store, or an equal one in memory, for which that is all there may be."""
    if store == "memory":
        backend = await _opened(bench, stack, url, max_bytes=entries * (_SIZE + 64))
        await _fill(backend, entries)
        return backend
    without = await _opened(bench, stack, url)
    return await _opened(bench, stack, url, max_bytes=(await maybe(without.usage())).bytes)


def _getter(backend: Any, entries: int) -> Operation:
    names = [_name(index) for index in _CHOOSE.choices(range(entries), k=_KEYS)]

    async def get(index: int) -> None:
        if await maybe(backend.get(names[index % _KEYS])) is None:
            raise RuntimeError("what was stored is not there")

    return get


def _setter(backend: Any, first: int) -> Operation:
    async def store(index: int) -> None:
        await maybe(backend.set(_name(first + index), _DATA + index.to_bytes(8, "big"), ttl=_LIFE))

    return store


async def _floor(store: str, url: str, entries: int, stack: AsyncExitStack) -> Operation:
    """Return a look-up of some key of this store, and of as many, without us."""
    if store == "memory":
        table = {_name(index): index for index in range(entries)}
        names = [_name(index) for index in _CHOOSE.choices(range(entries), k=_KEYS)]

        async def look_up(index: int) -> object:
            return table[names[index % _KEYS]]

        return look_up
    if store == "disk":
        database = sqlite3.connect(str(next(_folder(url).glob("*/cache.db"))))
        stack.callback(database.close)
        keys = [key for (key,) in database.execute("SELECT key FROM Cache ORDER BY random() LIMIT ?", (_KEYS,))]

        async def select(index: int) -> object:
            key = keys[index % len(keys)]
            return database.execute("SELECT value FROM Cache WHERE key = ? AND raw = 1", (key,)).fetchone()

        return select
    connection = Connection(url)
    stack.callback(connection.close)
    connection.ask(b"set floor 0 0 4\r\nword\r\n" if store == "memcached" else b"SET floor word\r\n")
    question = b"get floor\r\n" if store == "memcached" else b"GET floor\r\n"

    async def ask(_: int) -> object:
        return connection.ask(question)

    return ask


def _folder(url: str) -> Path:
    return Path(url.partition("://")[2])


def _used(store: str, url: str) -> int:
    """Return the bytes that the store takes by its own account, on disk by the length of its files."""
    if store == "disk":
        return sum(file.stat().st_size for file in _folder(url).rglob("*") if file.is_file())
    if store == "memory":
        return 0
    connection = Connection(url)
    try:
        if store == "redis":
            found = re.search(rb"used_memory:(\d+)", connection.ask(b"INFO memory\r\n", until=b"used_memory_rss"))
        else:
            found = re.search(rb"STAT bytes (\d+)", connection.ask(b"stats\r\n", until=b"END\r\n"))
    finally:
        connection.close()
    assert found is not None
    return int(found.group(1))


async def _taken_in_memory(bench: Bench, entries: int) -> int:
    """Return the bytes that this process allocates for so many entries, their keys and values among them."""
    tracemalloc.start()
    try:
        async with AsyncExitStack() as stack:
            before = tracemalloc.get_traced_memory()[0]
            await _fill(await _opened(bench, stack, "memory://"), entries)
            return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


class Connection:
    """A blocking connection to the server at a URL."""

    def __init__(self, url: str) -> None:
        host, _, port = url.partition("://")[2].partition(":")
        self._socket = socket.create_connection((host, int(port)))

    def ask(self, question: bytes, *, until: bytes = b"\r\n") -> bytes:
        """Return what is answered, up to ``until`` and maybe more."""
        self._socket.sendall(question)
        received = b""
        while until not in received:
            received += self._socket.recv(1 << 16)
        return received

    def close(self) -> None:
        self._socket.close()


def _panels(section: Section) -> Dict[str, Dict[str, List[Tuple[float, float]]]]:
    panels: Dict[str, Dict[str, List[Tuple[float, float]]]] = {}
    for row in section.rows:
        store, entries = row["name"].split(", ")
        for key, line in _LINES.items():
            points = panels.setdefault(f"{store}, us", {}).setdefault(line, [])
            points.append((float(entries.replace(",", "")), row[key]))
        overhead = panels.setdefault(f"{store}, bytes per entry beyond key and value", {}).setdefault("overhead", [])
        overhead.append((float(entries.replace(",", "")), row["overhead"]))
    return panels
