"""One of three Memcached servers is lost: what a look-up and a store cost meanwhile, and what is still found.

    python -m reliability.lost_server [--seconds N] [--entries N]

Starts three servers, and kills only these.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, List, NamedTuple

from claude_force_cache import MISSING, BytesCodec, Cache, open_cache

from .servers import Server

__all__ = ["main"]

_VALUE = 2048
_TASKS = 8


class Phase(NamedTuple):
    """What callers saw for a while. Times in seconds, one for each call."""

    lookups: List[float]
    stores: List[float]
    hits: int
    stored: int


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    server = Server("memcached", folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def _work(cache: Cache[bytes], entries: int, seconds: float) -> Phase:
    """Look keys up at random, and store anew one in ten, from several tasks at once."""
    phase = Phase([], [], 0, 0)
    hits = stored = 0
    end = time.monotonic() + seconds

    async def caller(seed: int) -> None:
        nonlocal hits, stored
        rng = random.Random(seed)
        while time.monotonic() < end:
            key = rng.randrange(entries)
            began = time.perf_counter()
            if rng.random() < 0.9:
                found = await cache.get(key)
                hits += found is not MISSING
                phase.lookups.append(time.perf_counter() - began)
            else:
                kept = await cache.set(key, os.urandom(_VALUE))
                stored += kept
                phase.stores.append(time.perf_counter() - began)

    await asyncio.gather(*(caller(seed) for seed in range(_TASKS)))
    return phase._replace(hits=hits, stored=stored)


def _report(name: str, phase: Phase) -> None:
    def figures(times: List[float], successes: int) -> str:
        if not times:
            return "none"
        ranked = sorted(times)
        quantiles = (statistics.median(ranked), ranked[int(len(ranked) * 0.99)], ranked[-1])
        return " ".join(f"{1000 * seconds:8.2f}" for seconds in quantiles) + f" {successes / len(times):7.1%}"

    print(f"{name:26} {figures(phase.lookups, phase.hits)} | {figures(phase.stores, phase.stored)}")


async def _fill(cache: Cache[bytes], entries: int) -> None:
    for key in range(entries):
        await cache.set(key, os.urandom(_VALUE))


async def _lose(servers: List[Server], entries: int, seconds: float) -> None:
    url = "memcached://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
    async with open_cache(url, codec=BytesCodec(), secrets="of an experiment only", tier_bytes=0) as cache:
        await _fill(cache, entries)
        columns = f"{'median':>8} {'p99':>8} {'most ms':>8}"
        print(f"{'':26} {columns} {'found':>7} | {columns}  stored")
        _report("three servers", await _work(cache, entries, seconds))
        servers[1].kill()
        _report("one killed: it refuses", await _work(cache, entries, seconds))
        servers[1].start()
        _report("back, empty", await _work(cache, entries, seconds))
        await _fill(cache, entries)
        servers[1].signal(signal.SIGSTOP)
        _report("one stopped: it is silent", await _work(cache, entries, seconds))
        servers[1].signal(signal.SIGCONT)
        _report("back, with what it had", await _work(cache, entries, seconds))
        usage = await cache.usage()
        report = await cache.verify()
        print(f"account: {usage.entries} entries, {usage.bytes} bytes; as counted: {report.consistent}")


async def _long_answer(servers: List[Server], times: int) -> None:
    url = "memcached://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
    value = os.urandom(5_000_000)
    stores, lookups = [], []
    async with open_cache(
        url, codec=BytesCodec(), namespace="long", secrets="of an experiment only", tier_bytes=0
    ) as cache:
        for _ in range(times):
            began = time.perf_counter()
            assert await cache.set("long", value), "it was not stored"
            stored = time.perf_counter()
            assert await cache.get("long") == value, "it was not found"
            lookups.append(time.perf_counter() - stored)
            stores.append(stored - began)
        entries = (await cache.usage()).entries
        await cache.clear()
    print(
        f"5 MB, {len(servers)} server(s), {entries} entries: store {1000 * statistics.median(stores):.0f} ms, "
        f"look-up {1000 * statistics.median(lookups):.0f} ms (medians of {times})"
    )


def main() -> None:
    """Run the experiment and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each phase takes")
    parser.add_argument("--entries", type=int, default=3000, help="how many entries there are")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lost-server-")))
        servers = [stack.enter_context(_server(folder)) for _ in range(3)]
        asyncio.run(_lose(servers, options.entries, options.seconds))
        asyncio.run(_long_answer(servers[:1], 20))
        asyncio.run(_long_answer(servers, 20))


if __name__ == "__main__":
    main()
