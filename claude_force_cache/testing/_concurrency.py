"""Checks of many at the same time: tasks, event loops in threads, connections, and callers that give up."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Awaitable, Callable, Dict, List, Sequence, Set, TypeVar

from .._backend import Backend, SyncBackend
from ._checks import check
from ._failure import ConformanceError
from ._handle import Handle
from ._kit import Kit
from ._needs import able
from ._stage import Stage
from ._worker import KEYS, WORKERS

T = TypeVar("T")

_WORKERS = 6
_CONNECTIONS = 3
_SHARE = 200
_PATIENCE = 60.0
_CALLS = 16
_STEPS = 6
_VERBS = ("set", "add", "delete", "touch")
_TURNS = 2 * _STEPS * len(_VERBS)
# How long what was cancelled may go on: a blocking verb to its end, a request that is on its way to the server.
_ABANDONED_THREADS = 10.0
_ABANDONED_CALLS = 1.0
_POLL = 0.02


def _tasks(stage: Stage, handles: Sequence[Handle], deed: str) -> List[List[str]]:
    """Let the workers do their part as tasks of one event loop, and return what each returned."""
    views = [stage.view(handle) for handle in handles]
    stage.note(f"{_WORKERS} tasks {deed} at the same time")

    async def meet() -> List[List[str]]:
        parts = (WORKERS[deed](views[number % len(views)], number) for number in range(_WORKERS))
        return await asyncio.wait_for(asyncio.gather(*parts), _PATIENCE)

    return _guarded(stage, lambda: stage.run(meet()))


def _loops(stage: Stage, handle: Handle, deed: str) -> List[List[str]]:
    """Let the workers do their part each in an event loop and a thread of its own."""
    view = stage.view(handle)
    stage.note(f"{_WORKERS} event loops in threads {deed} at the same time")

    async def part(number: int) -> List[str]:
        return await asyncio.wait_for(WORKERS[deed](view, number), _PATIENCE)

    def meet() -> List[List[str]]:
        with ThreadPoolExecutor(_WORKERS) as pool:
            return list(pool.map(lambda number: asyncio.run(part(number)), range(_WORKERS)))

    return _guarded(stage, meet)


def _guarded(stage: Stage, work: Callable[[], T]) -> T:
    try:
        return work()
    except asyncio.TimeoutError:
        stage.fail(f"they did not end within {_PATIENCE:g} seconds")
    except Exception as error:
        raise stage.failure(f"one of them raised {type(error).__name__}: {error}") from error


def judge_adds(stage: Stage, handle: Handle, won: Sequence[List[str]]) -> None:
    """Fail unless each key was won once, and holds what its winner stored."""
    winners = Counter(key for keys in won for key in keys)
    twice = {key: count for key, count in winners.items() if count > 1}
    stage.require(not twice, f"several adds of the same key returned True: {twice}")
    stage.account(handle, len(winners), sum(len(key) + 1 for key in winners))
    found = handle.get_many(sorted(winners))
    for number, keys in enumerate(won):
        for key in keys:
            value = found[key].value if key in found else None
            stage.expect(f"the value of {key!r}, which worker {number} added,", value, b"%d" % number)


def judge_stores(stage: Stage, handle: Handle, left: Sequence[List[str]]) -> None:
    """Fail unless what each worker left is there, and the account has all of it."""
    right = sorted(key for keys in left for key in keys)
    stage.expect("the number of entries in scan", len(handle.scan()), len(right))
    stage.expect("scan", handle.scanned_keys(), right)
    stage.account(handle)


def judge_writes(stage: Stage, handle: Handle) -> None:
    """Fail unless the account is exact and each entry is as long as it says."""
    stage.account(handle)
    found = handle.get_many(KEYS)
    sizes = {key: len(key) + len(entry.value) for key, entry in found.items()}
    stage.expect("the sizes in scan, compared to the entries,", {info.key: info.size for info in handle.scan()}, sizes)


def judge_in_time(stage: Stage, handle: Handle, judge: Callable[[], None]) -> None:
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


def judge_tickets(stage: Stage, handle: Handle, deeds: Sequence[List[str]]) -> None:
    """Fail unless each ticket was taken at most once, and none was lost."""
    told = Counter(deed for part in deeds for deed in part)
    twice = [deed for deed, count in told.items() if count > 1]
    stage.require(not twice, f"several deletes by the same version returned True: {twice}")
    put = {deed[4:] for deed in told if deed.startswith("put ")}
    taken = {deed[5:] for deed in told if deed.startswith("take ")}
    left = handle.value("ticket")
    stage.expect("what is left of the tickets", put - taken, set() if left is None else {left.decode()})


@check()
def concurrent_adds(kit: Kit) -> None:
    """Of any number of adds of one key at the same time exactly one returns True."""
    with kit.stage() as stage:
        handle = stage.handle()
        judge_adds(stage, handle, _tasks(stage, [handle], "add"))


@check()
def concurrent_stores(kit: Kit) -> None:
    """The account loses nothing when many store, overwrite and delete keys of their own."""
    with kit.stage() as stage:
        handle = stage.handle()
        judge_stores(stage, handle, _tasks(stage, [handle], "store"))


@check()
def concurrent_writes_at_the_limit(kit: Kit) -> None:
    """The account is exact and within the limit after many have written the same keys."""
    with kit.stage(_SHARE) as stage:
        handle = stage.handle()
        for _ in range(3):
            _tasks(stage, [handle], "write")
            judge_writes(stage, handle)


@check()
def concurrent_deletes(kit: Kit) -> None:
    """A delete by version takes the entry that was read and no newer one, however many do it at the same time."""
    with kit.stage() as stage:
        handle = stage.handle()
        judge_tickets(stage, handle, _tasks(stage, [handle], "take"))


@check()
def concurrent_event_loops(kit: Kit) -> None:
    """Adds, account and versions hold for several event loops at the same time, each in a thread, on one backend."""
    with kit.stage() as stage:
        handle = stage.handle()
        judge_adds(stage, handle, _loops(stage, handle, "add"))
        handle.clear()
        stage.sum_up()
        judge_stores(stage, handle, _loops(stage, handle, "store"))
        handle.clear()
        stage.sum_up()
        judge_tickets(stage, handle, _loops(stage, handle, "take"))
        stage.sum_up()
        _loops(stage, handle, "write")
        judge_writes(stage, handle)


@check(able("shared_between_processes"))
def concurrent_connections(kit: Kit) -> None:
    """Adds, account and versions hold for several backends at the same time on one namespace, and all agree."""
    with kit.stage() as stage:
        handles = [stage.handle(name=f"backend{number}") for number in range(_CONNECTIONS)]
        judge_adds(stage, handles[0], _tasks(stage, handles, "add"))
        handles[1].clear()
        stage.sum_up()
        judge_stores(stage, handles[2], _tasks(stage, handles, "store"))
        handles[0].clear()
        stage.sum_up()
        judge_tickets(stage, handles[1], _tasks(stage, handles, "take"))
    with kit.stage(_SHARE) as stage:
        handles = [stage.handle(name=f"backend{number}") for number in range(_CONNECTIONS)]
        _tasks(stage, handles, "write")
        for handle in handles:
            judge_writes(stage, handle)
        stage.expect("usage of every backend", {tuple(handle.usage()) for handle in handles}, {handles[0].usage()})


@check()
def scan_while_others_write(kit: Kit) -> None:
    """An entry that lives through a whole scan is yielded exactly once, whatever comes and goes meanwhile."""
    with kit.stage() as stage:
        handle = stage.handle()
        stays = {f"stays-{number}" for number in range(300)}
        handle.set_many(dict.fromkeys(stays, (b"value", None)))
        handle.set_many({f"goes-{number}": (b"value", None) for number in range(300)})
        view = stage.view(handle)

        async def scan() -> List[str]:
            seen = []
            async for info in view.scan():
                seen.append(info.key)
                number = len(seen)
                await view.delete(f"goes-{number}")
                await view.set(f"comes-{number}", b"value", ttl=None)
                await view.set(f"stays-{number % 300}", b"other", ttl=None)
                if number > 2000:
                    break
            return seen

        stage.note("scan 600 entries, and write, overwrite and delete one at each")
        seen = Counter(_guarded(stage, lambda: stage.run(scan())))
        twice = sorted(key for key, count in seen.items() if count > 1)
        stage.require(not twice, f"scan yields {twice[:3]} more than once")
        missing = sorted(stays - set(seen))
        stage.require(not missing, f"scan misses {len(missing)} entries that were there all the time: {missing[:3]}")
        stage.account(handle)


@check()
def cancelled_writes(kit: Kit) -> None:
    """A write that is cancelled has happened whole or not at all, and the account is exact."""
    dice = random.Random(kit.effort.seed)  # noqa: S311 - repeatable, and guards nothing
    with kit.stage(_SHARE) as stage:
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
            judge_in_time(stage, handle, lambda: judge_writes(stage, handle))
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
            entry = await view.get(name)
            if entry is None or entry.value != name.encode() * 50:
                wrong.append(name)

        stage.sum_up(f"{len(names)} entries are stored")
        for turn in range(_TURNS):
            _cancel_half(stage, [read(dice.choice(names)) for _ in range(_CALLS)], turn, dice)
            del stage.steps[1:]
            stage.require(not wrong, f"readers of {wrong[:3]} got the answer to another question, or none")

        async def all_at_once() -> None:
            await asyncio.wait_for(asyncio.gather(*map(read, names)), _PATIENCE)

        _guarded(stage, lambda: stage.run(all_at_once()))
        stage.require(not wrong, f"readers of {wrong[:3]} got the answer to another question, or none")
        stage.account(handle, 40, sum(51 * len(name) for name in names))


async def _write(view: Backend, verb: str, key: str, value: bytes) -> None:
    if verb == "set":
        await view.set(key, value, ttl=None)
    elif verb == "add":
        await view.add(key, value, ttl=60)
    elif verb == "delete":
        await view.delete(key)
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
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _PATIENCE)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.CancelledError):
                raise result

    stage.note(f"{len(work)} calls at once, half of them cancelled")
    _guarded(stage, lambda: stage.run(run()))
