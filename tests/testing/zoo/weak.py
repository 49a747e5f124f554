"""Backends that cannot do everything, and say so: the kit has to let each of them pass."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import zlib
from pathlib import Path
from typing import Optional

from claude_force_cache import Capabilities, Clock, EntryTooLargeError

from .reference import DictBackend, Record, Shelf, SQLiteBackend

__all__ = ["WEAK"]

_ALONE = Capabilities(shared_between_processes=False, shared_between_machines=False)


class Forgetful(DictBackend):
    """Its entries go with ``close``."""

    capabilities = Capabilities(persistent=False, shared_between_processes=False, shared_between_machines=False)

    async def close(self) -> None:
        if self.opened:
            await self.clear()
        await super().close()


class WholeSeconds(DictBackend):
    """Its lives end with the second."""

    capabilities = Capabilities(ttl_resolution=1.0, shared_between_processes=False, shared_between_machines=False)

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return None if ttl is None else math.ceil(now + ttl)


class OwnTime(DictBackend):
    """It takes no clock."""

    capabilities = Capabilities(injectable_clock=False, shared_between_processes=False, shared_between_machines=False)

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, None)


class LooksUpItsHost(DictBackend):
    """It asks the event loop for the addresses of a host, for which the loop keeps a thread of its own."""

    async def open(self) -> None:
        await asyncio.get_running_loop().getaddrinfo("localhost", 0)
        await super().open()


class ShortLived(DictBackend):
    """It gives lives of up to a month."""

    capabilities = Capabilities(max_ttl=30 * 86400.0, shared_between_processes=False, shared_between_machines=False)

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return super().expiry(None if ttl is None else min(ttl, 30 * 86400.0), now)


class Small(DictBackend):
    """It takes values of up to 1000 bytes."""

    capabilities = Capabilities(max_value_bytes=1000, shared_between_processes=False, shared_between_machines=False)

    def refuse(self, key: str, record: Record) -> None:
        super().refuse(key, record)
        if len(record.value) > 1000:
            raise EntryTooLargeError(self.table.size(key, record), len(key) + 1000)


class AnyVictim(DictBackend):
    """It evicts what comes to hand."""

    capabilities = Capabilities(recency=None, shared_between_processes=False, shared_between_machines=False)

    def victim(self) -> str:
        newest = list(self.table.records)[-1]
        return secrets.choice([key for key in self.table.records if key != newest] or [newest])


class Thorough(DictBackend):
    """It makes more room than it needs, so that it need not do so again at once."""

    capabilities = Capabilities(eviction_slack=0.5, shared_between_processes=False, shared_between_machines=False)

    def make_room(self) -> int:
        evicted = super().make_room()
        while evicted and self.max_bytes and self.table.bytes > self.max_bytes / 2 and len(self.table.records) > 1:
            self.table.remove(self.victim())
            evicted += 1
        return evicted


class Partitioned(DictBackend):
    """It has its entries in two parts, each with half of the limit and an order of its own."""

    capabilities = Capabilities(partitions=2, shared_between_processes=False, shared_between_machines=False)

    def part(self, key: str) -> int:
        return zlib.crc32(key.encode()) % 2

    def refuse(self, key: str, record: Record) -> None:
        size = self.table.size(key, record)
        if self.max_bytes is not None and size > self.max_bytes // 2:
            raise EntryTooLargeError(size, self.max_bytes // 2)

    def make_room(self) -> int:
        if self.max_bytes is None:
            return 0
        evicted = 0
        left = [self.max_bytes // 2] * 2
        for key in reversed(list(self.table.records)):
            part = self.part(key)
            left[part] -= self.table.size(key, self.table.records[key])
            if left[part] < 0:
                self.table.remove(key)
                evicted += 1
        return evicted


class OneProcess(SQLiteBackend):
    """Each process has entries of its own."""

    capabilities = _ALONE

    def __init__(self, path: Path, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(path, f"{os.getpid()}:{namespace}", max_bytes, clock)


WEAK = [
    Forgetful,
    WholeSeconds,
    OwnTime,
    LooksUpItsHost,
    ShortLived,
    Small,
    AnyVictim,
    Thorough,
    Partitioned,
    OneProcess,
]
