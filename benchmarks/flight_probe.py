"""Many callers for one cold key, in this process: told when by its standard input, it prints what happened as JSON.

Run as ``python -m benchmarks.flight_probe URL CALLERS``. Each line that it reads is a key, and is answered by a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Tuple

from claude_force_cache import Cache, open_cache

from .bench import patience

__all__ = ["CALL_SECONDS", "ask"]

CALL_SECONDS = 0.1


async def ask(cache: Cache[Any], key: str, callers: int) -> Tuple[float, int]:
    """Return the seconds until each of so many callers had the value, and how many calls made it."""
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(CALL_SECONDS)
        return f"an answer to {key}"

    loop = asyncio.get_running_loop()
    begin = loop.time()
    answers = await asyncio.gather(*(cache.get_or_compute(key, call) for _ in range(callers)))
    seconds = loop.time() - begin
    if set(answers) != {f"an answer to {key}"}:
        raise RuntimeError(f"these are not the answers: {set(answers)}")
    return seconds, calls


async def _main(url: str, callers: int) -> None:
    loop = asyncio.get_running_loop()
    async with open_cache(url, timeout=30, **patience(url)) as cache:
        await cache.get("somebody else's")  # connected before the clock starts
        print("ready", flush=True)
        while True:
            key = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
            if not key:
                return
            seconds, calls = await ask(cache, key, callers)
            print(json.dumps({"seconds": seconds, "calls": calls}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
