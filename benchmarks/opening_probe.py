"""Open the cache at the URL given, in this fresh process, and print what that took as JSON.

Another namespace of the store is opened before the clock starts, so that all modules are imported: every program
that uses the cache pays for them, however full it is.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Dict

from claude_force_cache import Cache, open_cache

from .bench import patience
from .machine import resident_bytes


async def probe(url: str) -> Dict[str, float]:
    """Return the seconds and bytes that ``open`` and a first look-up took, and the entries that were there."""
    options: Dict[str, Any] = {"max_bytes": "none", "timeout": 30, **patience(url)}
    async with open_cache(url, namespace="other", **options) as other:
        await other.get("nobody asked this")
    cache: Cache[Any] = open_cache(url, **options)
    memory, start = resident_bytes(), time.perf_counter()
    await cache.open()
    opened, grown = time.perf_counter(), resident_bytes()
    await cache.get("nobody asked this")
    looked = time.perf_counter()
    entries = (await cache.usage()).entries
    await cache.close()
    return {
        "open_s": opened - start,
        "grown_bytes": grown - memory,
        "lookup_s": looked - opened,
        "entries": entries,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probe(sys.argv[1]))))
