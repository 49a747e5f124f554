"""Backends that do not open, close, cancel or survive damage as they should."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from dataclasses import replace
from typing import AsyncIterator, Deque, Dict, Hashable, Mapping, Optional, Sequence, Tuple

from claude_force_cache import (
    BackendClosedError,
    BackendUnavailableError,
    Capabilities,
    Clock,
    Entry,
    EntryInfo,
    Usage,
)

from .reference import DictBackend, Record, Shelf, Table
from .registry import caught_by


@caught_by("closed_backend_refuses")
class CloseTwiceRaises(DictBackend):
    """A second ``close`` raises."""

    async def close(self) -> None:
        if not self.opened:
            raise BackendClosedError("it is closed already")
        await super().close()


@caught_by("closed_backend_refuses")
class WorksAfterClose(DictBackend):
    """The verbs go on working when the backend is closed."""

    async def close(self) -> None:
        return


@caught_by("closed_backend_refuses", "unopened_backend_refuses")
class PingsAfterClose(DictBackend):
    """``ping`` answers without looking whether the backend is open."""

    async def ping(self) -> None:
        return


@caught_by("reopening_keeps_entries")
class CloseClears(DictBackend):
    """The entries go with ``close``, though the capabilities promise that they stay."""

    async def close(self) -> None:
        if self.opened:
            await self.clear()
        await super().close()


@caught_by("reopening_keeps_entries")
class OpenClears(DictBackend):
    """``open`` begins with an empty namespace, though the capabilities promise that entries stay."""

    async def open(self) -> None:
        await super().open()
        await self.clear()


@caught_by("reopening_begins_anew")
class DeclaresThatNothingStays(DictBackend):
    """The capabilities say that entries go with ``close``, and they stay."""

    capabilities = Capabilities(persistent=False, shared_between_processes=False, shared_between_machines=False)


@caught_by("unopened_backend_refuses")
class WorksBeforeOpen(DictBackend):
    """The verbs work without ``open``."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.opened = True


@caught_by("close_ends_everything")
class LeavesATask(DictBackend):
    """A task that was started by ``open`` goes on after ``close``."""

    async def open(self) -> None:
        await super().open()
        self.task = asyncio.ensure_future(asyncio.sleep(60))


@caught_by("capabilities_as_declared")
class OpensWithLess(DictBackend):
    """The capabilities of the opened backend are not those that it had before."""

    async def open(self) -> None:
        await super().open()
        self.capabilities = replace(self.capabilities, recency=None)


@caught_by("use_from_elsewhere", "concurrent_event_loops")
class BelongsToItsFirstLoop(DictBackend):
    """Works only in the event loop in which it was opened."""

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        await super().open()

    async def get(self, key: str) -> Optional[Entry]:
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("attached to a different loop")
        return await super().get(key)


@caught_by("cancelled_writes")
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


@caught_by("cancelled_writes")
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


@caught_by("cancelled_reads")
class CancelledReadLeavesItsReply(DictBackend):
    """Replies are read in order from one connection; that of a cancelled read goes to the next caller."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.replies: Deque[Optional[Entry]] = deque()

    async def get(self, key: str) -> Optional[Entry]:
        self.replies.append(await super().get(key))
        await asyncio.sleep(0)
        return self.replies.popleft()


@caught_by("cancelled_writes")
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


@caught_by("corrupt_by_raw_damage")
class DamageRaises(DictBackend):
    """``get`` compares a checksum of its own, and raises where it differs."""

    table: _Summed
    table_type = _Summed

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        if entry is not None and not self.table.is_sound(key):
            raise ValueError(f"the checksum of {key} differs")
        return entry


@caught_by("corrupt_by_raw_damage", "corrupt_by_raw_swap", "corrupt_by_raw_older_version")
class DamageIsHidden(DictBackend):
    """``get`` compares a checksum of its own, and hides an entry that stays where it is, counted for ever."""

    table: _Summed
    table_type = _Summed

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        return entry if entry is None or self.table.is_sound(key) else None


@caught_by("cancelled_writes")
class CancelledBulkLeaksTheAccount(DictBackend):
    """``set_many`` counts its entries, waits for the store, and stores them; cancelled, it leaves the count."""

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        size = sum(len(key) + len(value) for key, (value, _) in items.items())
        with self.turn():
            self.table.bytes += size
        await asyncio.sleep(0)
        with self.turn():
            self.table.bytes -= size
        return await super().set_many(items)


@caught_by("cancelled_writes", "concurrent_clears")
class ClearRacesWithWrites(DictBackend):
    """``clear`` takes the entries, waits, and then sets the account to zero, with what others stored meanwhile."""

    async def clear(self) -> int:
        cleared = await super().clear()
        await asyncio.sleep(0)
        self.table.bytes = 0
        return cleared


@caught_by("cancelled_reads")
class CancelledBulkReadLeavesItsReply(DictBackend):
    """Replies to bulk reads come in order on one connection; that of a cancelled one goes to the next caller."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.replies: Deque[Dict[str, Entry]] = deque()

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        self.replies.append(await super().get_many(keys))
        await asyncio.sleep(0)
        return self.replies.popleft()


@caught_by("cancelled_reads")
class CancelledUsageKeepsItsConnection(DictBackend):
    """``usage`` takes one of two connections, and gives it back only where nobody cancels it."""

    free = 2

    async def usage(self) -> Usage:
        for _ in range(1000):
            if self.free:
                break
            await asyncio.sleep(0)
        else:
            raise BackendUnavailableError("no connection is free")
        self.free -= 1
        await asyncio.sleep(0)
        self.free += 1
        return await super().usage()


@caught_by("scan_left_off")
class ScanLeftOffHoldsTheStore(DictBackend):
    """A scan that is not read to its end counts as under way for ever, and ``clear`` waits for it."""

    scans = 0

    async def scan(self) -> AsyncIterator[EntryInfo]:
        self.scans += 1
        async for info in super().scan():
            yield info
        self.scans -= 1

    async def clear(self) -> int:
        if self.scans:
            raise BackendUnavailableError("a scan is under way")
        return await super().clear()
