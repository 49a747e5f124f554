"""Backends that do not open, close, cancel or survive damage as they should."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import Deque, Dict, Hashable, Optional

from claude_force_cache import BackendClosedError, BackendUnavailableError, Capabilities, Clock, Entry

from .reference import DictBackend, Record, Shelf, Table
from .registry import caught_by


@caught_by("")
class CloseTwiceRaises(DictBackend):
    """A second ``close`` raises."""

    async def close(self) -> None:
        if not self.opened:
            raise BackendClosedError("it is closed already")
        await super().close()


@caught_by("")
class WorksAfterClose(DictBackend):
    """The verbs go on working when the backend is closed."""

    async def close(self) -> None:
        return


@caught_by("")
class PingsAfterClose(DictBackend):
    """``ping`` answers without looking whether the backend is open."""

    async def ping(self) -> None:
        return


@caught_by("")
class CloseClears(DictBackend):
    """The entries go with ``close``, though the capabilities promise that they stay."""

    async def close(self) -> None:
        if self.opened:
            await self.clear()
        await super().close()


@caught_by("")
class OpenClears(DictBackend):
    """``open`` begins with an empty namespace, though the capabilities promise that entries stay."""

    async def open(self) -> None:
        await super().open()
        await self.clear()


@caught_by("")
class DeclaresThatNothingStays(DictBackend):
    """The capabilities say that entries go with ``close``, and they stay."""

    capabilities = Capabilities(persistent=False, shared_between_processes=False, shared_between_machines=False)


@caught_by("")
class BelongsToItsFirstLoop(DictBackend):
    """Works only in the event loop in which it was opened."""

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        await super().open()

    async def get(self, key: str) -> Optional[Entry]:
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("attached to a different loop")
        return await super().get(key)


@caught_by("")
class CancelledSetLeaksTheAccount(DictBackend):
    """A set counts the entry, waits for the store, and stores it; cancelled meanwhile, it leaves the count."""

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        size = len(key) + len(value)
        with self.turn():
            self.table.bytes += size
        await asyncio.sleep(0)
        with self.turn() as now:
            self.table.bytes -= size
            return self.store(key, value, ttl, now)


@caught_by("")
class CancelledDeleteLeaksTheAccount(DictBackend):
    """A delete takes the entry, waits, and then takes its size off; cancelled meanwhile, it leaves the size."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        record = self.table.records.get(key)
        deleted = await super().delete(key, version=version)
        if deleted and record is not None:
            size = self.table.size(key, record)
            self.table.bytes += size
            await asyncio.sleep(0)
            self.table.bytes -= size
        return deleted


@caught_by("")
class CancelledReadLeavesItsReply(DictBackend):
    """Replies are read in order from one connection; that of a cancelled read goes to the next caller."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.replies: Deque[Optional[Entry]] = deque()

    async def get(self, key: str) -> Optional[Entry]:
        self.replies.append(await super().get(key))
        await asyncio.sleep(0)
        return self.replies.popleft()


@caught_by("")
class CancelledSetKeepsItsTurn(DictBackend):
    """Sets take turns, and one that is cancelled while it waits for the store never gives its turn back."""

    busy = False

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        for _ in range(1000):
            if not self.busy:
                break
            await asyncio.sleep(0)
        else:
            raise BackendUnavailableError("another set takes too long")
        self.busy = True
        await asyncio.sleep(0)
        self.busy = False
        return await super().set(key, value, ttl=ttl)


class _Summed(Table):
    """Keeps a checksum of each value as it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: Dict[str, int] = {}

    def put(self, key: str, record: Record) -> None:
        super().put(key, record)
        self.sums[key] = zlib.crc32(record.value)

    def is_sound(self, key: str) -> bool:
        return self.sums[key] == zlib.crc32(self.records[key].value)


@caught_by("")
class DamageRaises(DictBackend):
    """``get`` compares a checksum of its own, and raises where it differs."""

    table: _Summed
    table_type = _Summed

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        if entry is not None and not self.table.is_sound(key):
            raise ValueError(f"the checksum of {key} differs")
        return entry


@caught_by("")
class DamageIsHidden(DictBackend):
    """``get`` compares a checksum of its own, and hides an entry that stays where it is, counted for ever."""

    table: _Summed
    table_type = _Summed

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        return entry if entry is None or self.table.is_sound(key) else None
