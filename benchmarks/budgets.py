"""``python -m benchmarks.budgets``: count the instructions of the hot paths, and hold them against their budgets.

What is counted are the bytecode instructions that the interpreter carries out in the code of this project, in the
event loop and in worker threads. They are the same on every machine, however busy, and differ between versions of
Python only, so each version has budgets of its own in ``budgets.json``. Time is not looked at.

A count above its budget fails the suite. Where more work is what is wanted, ``make budgets`` writes new budgets, for
every version of Python that has an environment here, and the change of the file shows in review.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import mode
from types import FrameType
from typing import Any, Awaitable, Callable, Dict, List, Mapping

import claude_force_backends
import claude_force_cache
import claude_force_orchestrator
from claude_force_orchestrator import AsyncAgentOrchestrator

from .bench import STORES, Bench, key
from .messages_api import MessagesAPI
from .payloads import text, value

__all__ = ["BUDGETS", "compare", "count"]

BUDGETS = Path(__file__).with_name("budgets.json")

_LENGTH = 2_000
_REST_SECONDS = 0.002
_LET_PASS = 1.003
"""Timers that start are in the count of a hundred keys, where the machine is so slow that each time some do."""
_KEYS = 100

Operation = Callable[[int], Awaitable[object]]


class _Counter:
    """Counts instructions in our code, while it is told to, in this thread and in those that start after :meth:`start`.

    The interpreter calls it for every instruction, so counted code is slow; what is counted does not depend on that.
    """

    def __init__(self) -> None:
        packages = (claude_force_backends, claude_force_cache, claude_force_orchestrator)
        self._roots = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in packages)
        self._steps = itertools.count()  # atomic, for several threads
        self._counting = False

    def start(self) -> None:
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)

    async def of(self, operation: Operation, index: int) -> int:
        """Return how many instructions one operation took."""
        # Python 3.12 reports instructions only if the frame that says so last asks for them, and threads say so, too.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._enter)
        first = next(self._steps)
        self._counting = True
        try:
            await operation(index)
            return self._settled() - first - 1
        finally:
            self._counting = False

    def _settled(self) -> int:
        """Return the number of steps once the threads are at rest, which finish what they do after their answer."""
        looks, last = 0, next(self._steps)
        while True:
            time.sleep(_REST_SECONDS)
            now, looks = next(self._steps), looks + 1
            if now == last + 1:
                return now - looks
            last = now

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if not self._counting or not frame.f_code.co_filename.startswith(self._roots):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            next(self._steps)
        return self._step


async def _count(bench: Bench) -> Dict[str, int]:
    counter = _Counter()
    counter.start()
    try:
        async with AsyncExitStack() as stack:
            operations = await _operations(bench, stack)
            return {
                # A hundred keys are many instructions, each of which is slow to count.
                name: await _usual(counter, operation, repeats=6 if "many" in name else 12)
                for name, operation in operations.items()
            }
    finally:
        counter.stop()


async def _usual(counter: _Counter, operation: Operation, repeats: int) -> int:
    """Return the most frequent of several counts: what is done now and then, or when a thread is late, is not in it."""
    counts = [await counter.of(operation, index) for index in range(2 * repeats)]
    return mode(counts[repeats:])  # the interpreter counts a function's first calls in part only


async def _operations(bench: Bench, stack: AsyncExitStack) -> Dict[str, Operation]:
    values = [value(f"budget {index}", _LENGTH) for index in range(_KEYS)]
    keys = [key(index) for index in range(_KEYS)]
    operations: Dict[str, Operation] = {}

    def cached(cache: Any) -> Operation:
        return lambda index: cache.get(keys[index % _KEYS])

    def together(cache: Any) -> Operation:
        return lambda _: cache.get_many(keys)

    def stored(cache: Any) -> Operation:
        return lambda index: cache.set(key(_KEYS + index), values[index % _KEYS])

    tier = await stack.enter_async_context(bench.cache("memory://", tier_bytes="16MiB", tier_ttl="1h"))
    for index, one in enumerate(values):
        await tier.set(keys[index], one["text"])
    operations["get, in-process tier"] = cached(tier)
    for store in STORES:
        # Room for what is looked up and a little more, so that every store below evicts.
        limit = (_KEYS + 8) * await bench.entry_size(values[0])
        # Only the first use of an entry in so long is told to the server, so that is not in what is counted.
        url = bench.new_url(store) + ("?recency=1h" if store == "memcached" else "")
        cache = await stack.enter_async_context(bench.cache(url, tier_bytes=0))
        full = await stack.enter_async_context(bench.cache(url, tier_bytes=0, namespace="full", max_bytes=limit))
        for index, one in enumerate(values):
            await cache.set(keys[index], one)
        operations[f"get, {store}"] = cached(cache)
        operations[f"get_many of {_KEYS}, {store}"] = together(cache)
        operations[f"set, {store}"] = stored(cache)
        operations[f"set at the limit, {store}"] = stored(full)
        for index in range(_KEYS + 16):
            await full.set(key(-1 - index), values[index % _KEYS])
    for name, url in (
        ("in-process tier", "memory://?tier_bytes=16MiB&tier_ttl=1h"),
        ("verified", "memory://?tier_bytes=0"),
    ):
        operations[f"execute_agent, {name}"] = await _execution(bench, stack, url)
    return operations


async def _execution(bench: Bench, stack: AsyncExitStack, url: str) -> Operation:
    folder = bench.folder / f"budget-{len(url)}"
    folder.mkdir()
    (folder / "agent.md").write_text(text("agent", 4_000), encoding="utf-8")
    (folder / "claude.json").write_text(json.dumps({"agents": {"reviewer": {"file": "agent.md"}}}), encoding="utf-8")
    api = stack.enter_context(MessagesAPI())
    orchestrator = await stack.enter_async_context(
        AsyncAgentOrchestrator(
            folder / "claude.json", "no-key-needed", base_url=api.base_url(_LENGTH), cache=url, enable_tracking=False
        )
    )
    task = text("task", 600)

    async def execute(_: int) -> None:
        result = await orchestrator.execute_agent("reviewer", task)
        assert result.success, result.errors

    await execute(0)
    return execute


def count() -> Dict[str, int]:
    """Return how many instructions each hot path takes in this interpreter, by name.

    :raises RuntimeError: if Redis or Memcached cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="claude-force-budgets-") as folder:
        bench = Bench(Path(folder), Path(folder), quick=True, say=lambda _: None)
        try:
            return asyncio.run(_count(bench))
        finally:
            bench.servers.close()


def compare(counts: Mapping[str, int], budgets: Mapping[str, int]) -> List[str]:
    """Return a line for each path that is above its budget, or has none, or is no longer there."""
    lines = []
    for name in sorted({*counts, *budgets}):
        found, most = counts.get(name), budgets.get(name)
        if found is None:
            lines.append(f"{name}: has a budget of {most}, and is not counted any more")
        elif most is None:
            lines.append(f"{name}: takes {found} instructions, and has no budget")
        elif found > most * _LET_PASS:
            share = 100 * (found - most) / most
            lines.append(f"{name}: takes {found} instructions, {found - most} ({share:.1f} %) above its budget {most}")
    return lines


def version() -> str:
    """Return the version of Python as the file of budgets has it."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def main() -> int:
    """Return 1 if a path is above its budget, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make what was counted the budgets of this Python")
    arguments = parser.parse_args()
    counts = count()
    table: Dict[str, Dict[str, int]] = json.loads(BUDGETS.read_text(encoding="utf-8"))
    budgets = table.get(version(), {})
    print(f"Python {version()}")
    for name, found in counts.items():
        print(f"  {found:7} of {budgets.get(name, 0):7}  {name}")
    if arguments.write:
        table[version()] = counts
        ordered = dict(sorted(table.items(), key=lambda item: [*map(int, item[0].split("."))]))
        BUDGETS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        return 0
    above = compare(counts, budgets)
    print("\n".join(above))
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
