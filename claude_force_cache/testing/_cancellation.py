"""Checks of callers that give up: what they leave behind is whole, and no other caller pays for it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Awaitable, Callable, Dict, List, Sequence, Set

from .._backend import Backend, SyncBackend
from ._checks import check
from ._concurrency import PATIENCE, SHARE, guarded, judge_writes
from ._failure import ConformanceError
from ._handle import Handle
from ._kit import Kit
from ._stage import Stage
from ._worker import KEYS

_CALLS = 16
_STEPS = 6
_VERBS = ("set", "add", "delete", "touch", "set_many", "clear")
_TURNS = 2 * _STEPS * len(_VERBS)
# How long what was cancelled may go on: a blocking verb to its end, a request that is on its way to the server.
_ABANDONED_THREADS = 10.0
_ABANDONED_CALLS = 1.0
_POLL = 0.02


@check()
def cancelled_writes(kit: Kit) -> None:
    """A write that is cancelled has happened whole or not at all, and the account is exact."""
    dice = random.Random(kit.effort.seed)  # noqa: S311 - repeatable, and guards nothing
    with kit.stage(SHARE) as stage:
        handle = stage.handle()
        view = stage.view(handle)
        written: Dict[str, Set[bytes]] = {key: set() for key in KEYS}
        for turn in range(_TURNS):
            stage.sum_up(f"{turn} times the following" if turn else "")
            work = []
            for number in range(_CALLS):
                key = dice.choice(KEYS)
                value = bytes([turn, number]) * dice.randrange(20)
                written[key].add(value)
                # Each verb is the one that is cancelled, at each step of the event loop.
                verb = dice.choice(_VERBS) if number % 2 else _VERBS[turn // (2 * _STEPS) % len(_VERBS)]
                work.append(_write(view, verb, key, value))
            _cancel_half(stage, work, turn, dice)
            _judge_in_time(stage, handle, lambda: judge_writes(stage, handle))
            for key, entry in handle.get_many(KEYS).items():
                stage.require(entry.value in written[key], f"{key!r} holds {entry.value!r}, which nobody stored")


@check()
def cancelled_reads(kit: Kit) -> None:
    """After cancelled reads every caller gets its own answer, and no connection is lost."""
    dice = random.Random(kit.effort.seed)  # noqa: S311 - repeatable, and guards nothing
    with kit.stage() as stage:
        handle = stage.handle()
        names = [f"k{number}" for number in range(40)]
        handle.set_many({name: (name.encode() * 50, None) for name in names})
        view = stage.view(handle)
        wrong: List[str] = []

        async def read(name: str) -> None:
            verb = dice.choice(("get", "get_many", "scan", "usage"))
            if verb == "usage":
                right = tuple(await view.usage()) == (40, sum(51 * len(each) for each in names))
            elif verb == "scan":
                right = {info.key async for info in view.scan()} == set(names)
            else:
                entry = await view.get(name) if verb == "get" else (await view.get_many([name])).get(name)
                right = entry is not None and entry.value == name.encode() * 50
            if not right:
                wrong.append(f"{verb} {name}")

        stage.sum_up(f"{len(names)} entries are stored")
        for turn in range(_TURNS):
            _cancel_half(stage, [read(dice.choice(names)) for _ in range(_CALLS)], turn, dice)
            del stage.steps[1:]
            stage.require(not wrong, f"readers of {wrong[:3]} got the answer to another question, or none")

        async def all_at_once() -> None:
            await asyncio.wait_for(asyncio.gather(*map(read, names)), PATIENCE)

        guarded(stage, lambda: stage.run(all_at_once()))
        stage.require(not wrong, f"readers of {wrong[:3]} got the answer to another question, or none")
        stage.account(handle, 40, sum(51 * len(name) for name in names))


async def _write(view: Backend, verb: str, key: str, value: bytes) -> None:
    if verb == "set":
        await view.set(key, value, ttl=None)
    elif verb == "add":
        await view.add(key, value, ttl=60)
    elif verb == "delete":
        await view.delete(key)
    elif verb == "set_many":
        await view.set_many({key: (value, None)})
    elif verb == "clear":
        await view.clear()
    else:
        await view.touch(key, ttl=60)


def _cancel_half(stage: Stage, work: Sequence[Awaitable[None]], turn: int, dice: random.Random) -> None:
    """Start everything at once, cancel every second after a moment, and wait for the rest."""

    async def run() -> None:
        tasks = [asyncio.ensure_future(part) for part in work]
        if turn % 2 == 0:
            # To the step of the event loop: each point where a verb of few steps may wait is met.
            for _ in range(turn // 2 % _STEPS):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(dice.random() * 0.003)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.CancelledError):
                raise result

    stage.note(f"{len(work)} calls at once, half of them cancelled")
    guarded(stage, lambda: stage.run(run()))


def _judge_in_time(stage: Stage, handle: Handle, judge: Callable[[], None]) -> None:
    """Judge again for a while: what a cancelled caller left running ends in a thread, or in the server."""
    deadline = time.monotonic() + (_ABANDONED_THREADS if isinstance(handle.backend, SyncBackend) else _ABANDONED_CALLS)
    shown = len(stage.steps)
    while True:
        try:
            return judge()
        except ConformanceError:
            if time.monotonic() > deadline:
                raise
            del stage.steps[shown:]
            time.sleep(_POLL)
