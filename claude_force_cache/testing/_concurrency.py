"""Checks of many at the same time: tasks, event loops in threads, and connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Sequence, TypeVar

from ._checks import check
from ._handle import Handle
from ._kit import Kit
from ._needs import able
from ._stage import Stage
from ._worker import KEYS, WORKERS

__all__ = ["PATIENCE", "SHARE", "guarded", "judge_adds", "judge_stores", "judge_tickets", "judge_writes"]

T = TypeVar("T")

_WORKERS = 6
_CONNECTIONS = 3
SHARE = 200
PATIENCE = 60.0


def _tasks(stage: Stage, handles: Sequence[Handle], deed: str) -> List[List[str]]:
    """Let the workers do their part as tasks of one event loop, and return what each returned."""
    views = [stage.view(handle) for handle in handles]
    stage.note(f"{_WORKERS} tasks {deed} at the same time")

    async def meet() -> List[List[str]]:
        parts = (WORKERS[deed](views[number % len(views)], number) for number in range(_WORKERS))
        return await asyncio.wait_for(asyncio.gather(*parts), PATIENCE)

    return guarded(stage, lambda: stage.run(meet()))


def _loops(stage: Stage, handle: Handle, deed: str) -> List[List[str]]:
    """Let the workers do their part each in an event loop and a thread of its own."""
    view = stage.view(handle)
    stage.note(f"{_WORKERS} event loops in threads {deed} at the same time")

    async def part(number: int) -> List[str]:
        return await asyncio.wait_for(WORKERS[deed](view, number), PATIENCE)

    def meet() -> List[List[str]]:
        with ThreadPoolExecutor(_WORKERS) as pool:
            return list(pool.map(lambda number: asyncio.run(part(number)), range(_WORKERS)))

    return guarded(stage, meet)


def guarded(stage: Stage, work: Callable[[], T]) -> T:
    try:
        return work()
    except asyncio.TimeoutError:
        stage.fail(f"they did not end within {PATIENCE:g} seconds")
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
    with kit.stage(SHARE) as stage:
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
def concurrent_touches(kit: Kit) -> None:
    """A touch changes the life of what is there, and never brings an older value back."""
    with kit.stage() as stage:
        handle = stage.handle()
        lost = [value for part in _tasks(stage, [handle], "renew") for value in part]
        stage.require(not lost, f"values were lost that others only touched, such as {lost[:3]}")
        stage.account(handle)


@check()
def concurrent_clears(kit: Kit) -> None:
    """The account is exact when others write while the namespace is cleared."""
    with kit.stage(SHARE) as stage:
        handle = stage.handle()
        for _ in range(3):
            _tasks(stage, [handle], "sweep")
            judge_writes(stage, handle)


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
    with kit.stage(SHARE) as stage:
        handles = [stage.handle(name=f"backend{number}") for number in range(_CONNECTIONS)]
        _tasks(stage, handles, "write")
        for handle in handles:
            judge_writes(stage, handle)
        stage.expect("usage of every backend", {tuple(handle.usage()) for handle in handles}, {handles[0].usage()})


@check()
def scan_left_off(kit: Kit) -> None:
    """A scan that is not read to its end leaves nothing behind that others have to wait for."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set_many({f"k{number}": (b"value", None) for number in range(300)})
        view = stage.view(handle)

        async def begin() -> None:
            infos = view.scan()
            async for _ in infos:
                break
            await infos.aclose()  # type: ignore[attr-defined]  # the contract allows other iterators than generators

        stage.sum_up("300 entries are stored")
        for _ in range(20):
            guarded(stage, lambda: stage.run(begin()))
        stage.note("20 scans are left off after one entry")
        stage.expect("set", handle.set("k0", b"new"), 0)
        stage.expect("clear", handle.clear(), 300)
        stage.account(handle, 0, 0)


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
        seen = Counter(guarded(stage, lambda: stage.run(scan())))
        twice = sorted(key for key, count in seen.items() if count > 1)
        stage.require(not twice, f"scan yields {twice[:3]} more than once")
        missing = sorted(stays - set(seen))
        stage.require(not missing, f"scan misses {len(missing)} entries that were there all the time: {missing[:3]}")
        stage.account(handle)
