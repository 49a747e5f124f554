"""A check of those who wait until an entry is gone."""

from __future__ import annotations

import asyncio
from typing import Awaitable, List

from ._checks import check
from ._concurrency import guarded
from ._kit import Kit

_HOUR = 3600.0
_SOON = 5.0
"""Seconds, far more than any store needs to tell of a deletion, and far less than what is waited for."""


@check()
def waits_end(kit: Kit) -> None:
    """A wait ends when its time is over, and soon when the entry is deleted or there is none; it changes nothing."""
    with kit.stage() as stage:
        handle = stage.handle()
        view = stage.view(handle)

        def ends(waiting: Awaitable[object], what: str) -> None:
            async def bounded() -> bool:
                done, pending = await asyncio.wait([asyncio.ensure_future(waiting)], timeout=_SOON)
                for task in pending:
                    task.cancel()
                for task in done:
                    task.result()
                return not pending

            stage.note(what)
            stage.require(guarded(stage, lambda: stage.run(bounded())), f"it did not end within {_SOON:g} s")

        handle.set("key", b"value")
        ends(view.wait("key", timeout=0.05), "wait('key', timeout=0.05)")
        stage.expect("what is under 'key' after a wait", handle.value("key"), b"value")
        ends(view.wait("absent", timeout=_HOUR), f"wait('absent', timeout={_HOUR:g})")

        async def meet() -> None:
            waiting: List[asyncio.Future[None]] = [
                asyncio.ensure_future(view.wait("key", timeout=_HOUR)) for _ in range(3)
            ]
            try:
                # One gives up, before or after it has told the store.
                await asyncio.sleep(0.01)
                waiting[0].cancel()
                await view.delete("key")
                await asyncio.gather(*waiting[1:])
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

        ends(meet(), f"three wait('key', timeout={_HOUR:g}), one is cancelled, and delete('key')")
        stage.account(handle, 0, 0)
