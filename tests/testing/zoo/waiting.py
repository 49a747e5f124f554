"""Backends whose waits do not end."""

from __future__ import annotations

import asyncio

from .reference import DictBackend
from .registry import caught_by


@caught_by("waits_end")
class WaitsForItsTimeAlone(DictBackend):
    """A wait is over when its time is, whatever is deleted meanwhile."""

    async def wait(self, key: str, *, timeout: float) -> None:
        if await self.get(key) is not None:
            await asyncio.sleep(timeout)


@caught_by("waits_end")
class WaitsForWhatIsGone(DictBackend):
    """A wait listens for deletions and does not look whether there is anything left to delete."""

    async def open(self) -> None:
        self.deleted = asyncio.Event()
        await super().open()

    async def delete(self, key: str, *, version: object = None) -> bool:
        deleted = await super().delete(key, version=version)  # type: ignore[arg-type]
        self.deleted.set()
        return deleted

    async def wait(self, key: str, *, timeout: float) -> None:
        try:
            await asyncio.wait_for(self.deleted.wait(), timeout)
        except asyncio.TimeoutError:
            pass


@caught_by("waits_end")
class WaitTakesTheEntryAway(DictBackend):
    """A wait that comes to its end deletes what it waited for."""

    async def wait(self, key: str, *, timeout: float) -> None:
        await asyncio.sleep(min(timeout, 0.03))
        await self.delete(key)
