"""Checks of opening and closing, and of use from other event loops and threads."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, List

from .._backend import Entry, SyncBackend
from .._errors import BackendClosedError
from ._checks import check
from ._handle import Handle
from ._kit import Kit
from ._needs import able, unable
from ._stage import Stage

_PATIENCE = 3.0


def _verbs(handle: Handle) -> Dict[str, Callable[[], object]]:
    return {
        "get": lambda: handle.get("key"),
        "get_many": lambda: handle.get_many(["key"]),
        "set": lambda: handle.set("key", b"value"),
        "set_many": lambda: handle.set_many({"key": (b"value", None)}),
        "add": lambda: handle.add("key", b"value"),
        "delete": lambda: handle.delete("key"),
        "touch": lambda: handle.touch("key", ttl=60),
        "scan": handle.scan,
        "usage": handle.usage,
        "clear": handle.clear,
        "ping": handle.ping,
    }


def _refuses(stage: Stage, handle: Handle, when: str) -> None:
    for name, verb in _verbs(handle).items():
        stage.sum_up(when)
        with stage.raises(BackendClosedError, f"{name} {when}"):
            verb()


@check()
def closed_backend_refuses(kit: Kit) -> None:
    """After close every verb raises BackendClosedError, and a second close does nothing."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.ping()
        handle.set("key", b"value")
        handle.close()
        handle.close()
        _refuses(stage, handle, "after close")


@check()
def unopened_backend_refuses(kit: Kit) -> None:
    """Before open every verb raises BackendClosedError, and close does nothing."""
    with kit.stage() as stage:
        handle = stage.handle(opened=False)
        _refuses(stage, handle, "before open")
        handle.close()


@check(able("persistent"))
def reopening_keeps_entries(kit: Kit) -> None:
    """What was stored is there with its version, life and account when the store is opened again."""
    with kit.stage(100) as stage:
        handle = stage.handle()
        handle.set("a", b"value")
        handle.set("b", b"value", ttl=1000)
        handle.delete("b")
        handle.set("c", b"")
        version = handle.version("a")
        stage.sum_up("'a' is stored as b'value' and 'c' as b''")
        handle.close()
        handle = stage.handle()
        stage.account(handle, 2, 7)
        stage.expect("get", handle.get("a"), Entry(b"value", version))
        stage.sum_up("'a' and 'c' were stored, the version of 'a' was read, and the store was opened again")
        handle.set("a", b"new")
        stage.expect("delete by the version before", handle.delete("a", version=version), False)
        handle.close()
        handle = stage.handle()
        stage.expect("get", handle.value("a"), b"new")
        stage.account(handle, 2, 5)


@check(unable("persistent"))
def reopening_begins_anew(kit: Kit) -> None:
    """A store that is declared as not persistent is empty after close: what lasts has to be declared."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("key", b"value")
        handle.close()
        handle = stage.handle()
        stage.expect("get after reopening", handle.get("key"), None)
        stage.account(handle, 0, 0)


@check()
def close_ends_everything(kit: Kit) -> None:
    """A closed backend leaves no task and no thread behind."""
    with kit.stage() as stage:
        threads = set(threading.enumerate())
        # The loop's own threads, in which a client looks up host names, end with the loop and not with a backend.
        pool = ThreadPoolExecutor()
        stage.loop.set_default_executor(pool)
        handle = stage.handle()
        for verb in _verbs(handle).values():
            verb()
        stage.sum_up("every verb is called once")
        handle.close()
        stage.run(asyncio.sleep(0))
        pool.shutdown(wait=False)
        tasks = [task for task in asyncio.all_tasks(stage.loop) if not task.done()]
        stage.require(not tasks, f"close left {len(tasks)} tasks running: {tasks[:1]}")
        deadline = time.monotonic() + _PATIENCE
        left: List[threading.Thread] = []
        while time.monotonic() < deadline:
            left = [thread for thread in threading.enumerate() if thread not in threads]
            if not left:
                return
            time.sleep(0.01)
        stage.fail(f"close left threads running: {', '.join(sorted(thread.name for thread in left))}")


@check()
def use_from_elsewhere(kit: Kit) -> None:
    """A backend works on in another event loop, or a blocking one in other threads, and is closed there."""
    with kit.stage(100) as stage:
        handle = stage.handle()
        handle.set("key", b"value")
        version = handle.version("key")
        if isinstance(handle.backend, SyncBackend):
            for turn in range(3):
                stage.sum_up("'key' is stored")
                stage.note("go on in another thread")
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(_use, stage, handle, turn).result()
        else:
            for turn in range(3):
                stage.sum_up("'key' is stored")
                stage.change_loop()
                _use(stage, handle, turn)
        stage.expect("get", handle.get("key"), Entry(b"value", version))
        with ThreadPoolExecutor(1) as pool:
            if isinstance(handle.backend, SyncBackend):
                pool.submit(handle.clear).result()
                pool.submit(handle.close).result()


def _use(stage: Stage, handle: Handle, turn: int) -> None:
    stage.expect("get of what was stored elsewhere", handle.value("key"), b"value")
    handle.set(f"k{turn}", b"")
    stage.account(handle, 2 + turn, 8 + 2 * (turn + 1))
