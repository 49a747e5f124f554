"""Other libraries that let one process make a value for all, as their documentation sets them up, for comparison."""

from __future__ import annotations

import asyncio
import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List

__all__ = ["PEERS", "Ask", "value_of"]

Ask = Callable[[str, Callable[[], object], float], Awaitable[List[str]]]
"""Takes a key, what to call when the value is being made, and how long that takes; returns what every task got."""


def value_of(key: str) -> str:
    """Return what belongs under ``key``."""
    return f"value of {key}"


@asynccontextmanager
async def _cashews(url: str, tasks: int) -> AsyncIterator[Ask]:
    cache = _module("cashews").Cache()
    cache.setup(url)

    async def ask(key: str, began: Callable[[], object], seconds: float) -> List[str]:
        async def make(key: str) -> str:
            began()
            await asyncio.sleep(seconds)
            return value_of(key)

        cached = cache(ttl="1h", key="one-call:{key}", lock=True)(make)
        return list(await asyncio.gather(*(cached(key) for _ in range(tasks))))

    try:
        yield ask
    finally:
        await cache.close()


@asynccontextmanager
async def _dogpile(url: str, tasks: int) -> AsyncIterator[Ask]:
    arguments = {"url": url, "distributed_lock": True, "thread_local_lock": False}
    region = _module("dogpile.cache").make_region().configure("dogpile.cache.redis", arguments=arguments)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(tasks) as threads:

        async def ask(key: str, began: Callable[[], object], seconds: float) -> List[str]:
            def make() -> str:
                began()
                time.sleep(seconds)
                return value_of(key)

            waiting = (loop.run_in_executor(threads, region.get_or_create, key, make) for _ in range(tasks))
            return list(await asyncio.gather(*waiting))

        yield ask


def _module(name: str) -> Any:
    # In the environment of the benchmarks, not in the one in which types are checked.
    return importlib.import_module(name)


PEERS: Dict[str, Any] = {"cashews": _cashews, "dogpile": _dogpile}
"""By name: given a Redis and how many tasks ask at once, each lends an :data:`Ask`."""
