"""A verified hit on each backend, beside the client library that it stands on."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Awaitable, Callable, Dict, List

from claude_force_cache import Cache

from ..bench import STORES, Bench, case, key
from ..measuring import Contender, Section, compare, interleave
from ..payloads import value

_LENGTHS = {"2 KB": 2_000, "20 KB": 20_000}
_ENTRIES = 64

Encoded = List[bytes]
Read = Callable[[int], Awaitable[object]]


async def _dict(bench: Bench, stack: AsyncExitStack, encoded: Encoded) -> Dict[str, Read]:
    entries = dict(enumerate(encoded))

    async def nothing(_: int) -> None:
        return

    async def read(index: int) -> object:
        return json.loads(entries[index % _ENTRIES])

    return {"await an empty coroutine": nothing, "a dict of JSON": read}


async def _diskcache(bench: Bench, stack: AsyncExitStack, encoded: Encoded) -> Dict[str, Read]:
    import diskcache

    loop, pool = asyncio.get_running_loop(), stack.enter_context(ThreadPoolExecutor(1))
    raw = diskcache.Cache(str(bench.folder / f"diskcache-{len(encoded[0])}"))
    stack.callback(raw.close)
    for index, data in enumerate(encoded):
        raw.set(f"{index:064x}", data)

    def read(index: int) -> Awaitable[object]:
        return loop.run_in_executor(None, raw.get, f"{index % _ENTRIES:064x}")

    def read_in_own(index: int) -> Awaitable[object]:
        return loop.run_in_executor(pool, raw.get, f"{index % _ENTRIES:064x}")

    return {"diskcache get in a thread": read, "diskcache get in one thread of its own": read_in_own}


async def _redis(bench: Bench, stack: AsyncExitStack, encoded: Encoded) -> Dict[str, Read]:
    from redis.asyncio import Redis

    raw = Redis(host="127.0.0.1", port=bench.servers.start("redis"))
    stack.push_async_callback(raw.aclose)
    for index, data in enumerate(encoded):
        await raw.set(f"raw:{index:064x}", data)

    async def read(index: int) -> object:
        return await raw.get(f"raw:{index % _ENTRIES:064x}")

    return {"redis.asyncio GET": read}


async def _memcached(bench: Bench, stack: AsyncExitStack, encoded: Encoded) -> Dict[str, Read]:
    from pymemcache import PooledClient

    loop = asyncio.get_running_loop()
    raw = PooledClient(("127.0.0.1", bench.servers.start("memcached")), max_pool_size=4)
    stack.callback(raw.close)
    for index, data in enumerate(encoded):
        raw.set(f"raw:{index:064x}", data, noreply=False)

    def read(index: int) -> Awaitable[object]:
        return loop.run_in_executor(None, raw.get, f"raw:{index % _ENTRIES:064x}")

    return {"PooledClient.get in a thread": read}


# For each store what it is compared to: any number of reads by name; the ratio is to the first.
_CONTENDERS = {"memory": _dict, "disk": _diskcache, "redis": _redis, "memcached": _memcached}


@case("lookups", "A verified hit, without orchestrator")
async def lookups(bench: Bench) -> Section:
    section = Section(
        about=(
            f"`Cache.get` of JSON values over {_ENTRIES} keys, one after another. Verified means read from the store, "
            "the tag checked, decompressed and decoded, without the in-process tier. The raw clients do none of that: "
            "they return the bytes that were stored, uncompressed. The ratio is to the first of its store and size."
        )
    )
    for store in STORES:
        reason = bench.missing(store)
        if reason is not None:
            section.missing.append(reason)
            continue
        for size, length in _LENGTHS.items():
            bench.say(f"  {store}, {size}")
            section.rows += await _measure(bench, store, size, [value(f"hit {i}", length) for i in range(_ENTRIES)])
    return section


def _get(cache: Cache[Any], keys: List[Any], index: int) -> Awaitable[object]:
    return cache.get(keys[index % _ENTRIES])


async def _measure(bench: Bench, store: str, size: str, values: List[Any]) -> List[Dict[str, Any]]:
    encoded = [json.dumps(one).encode() for one in values]
    async with AsyncExitStack() as stack:
        reads = dict(await _CONTENDERS[store](bench, stack, encoded))
        for name, tier in (("Cache.get, verified", 0), ("Cache.get, in-process tier", "16MiB")):
            cache = await stack.enter_async_context(bench.cache(bench.new_url(store), tier_bytes=tier))
            for index, one in enumerate(values):
                await cache.set(key(index), one)
            reads[f"{store}://, {name}"] = partial(_get, cache, [key(index) for index in range(_ENTRIES)])
        contenders = [Contender(f"{size}, {name}", read) for name, read in reads.items()]
        series = await interleave(contenders, rounds=bench.pick(6, 30), operations=bench.pick(100, 300))
        for name, read in reads.items():
            if name.startswith(f"{store}://") and await read(1) != values[1]:
                raise RuntimeError(f"{name} did not find what was stored")
    return compare(series, to=contenders[0].name)
