"""Backends that take an entry for another, or let two callers win."""

from __future__ import annotations

import asyncio
import itertools
from typing import Dict, Hashable, Optional

from claude_force_cache import Clock, Entry

from .reference import DictBackend, Shelf
from .registry import caught_by


@caught_by("version_guards_delete", "corrupt_spares_the_newer", "concurrent_deletes")
class DeleteIgnoresTheVersion(DictBackend):
    """A delete by version takes whatever is there."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return await super().delete(key)


@caught_by("version_guards_touch")
class TouchIgnoresTheVersion(DictBackend):
    """A touch by version renews whatever is there."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await super().touch(key, ttl=ttl)


@caught_by("concurrent_deletes")
class DeleteByVersionLosesARace(DictBackend):
    """A delete by version looks first and deletes later, so it takes a newer entry that came in between."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        with self.turn():
            if not self.holds(key, version):
                return False
        await asyncio.sleep(0)
        return await super().delete(key)


@caught_by("version_of_each_write")
class VersionsStartAnewAfterADelete(DictBackend):
    """A version is the number of writes since the key was last deleted, so it comes again."""

    def new_version(self, key: str, value: bytes) -> Hashable:
        before = self.table.records.get(key)
        return 1 if before is None else int(str(before.version)) + 1


@caught_by("reopening_keeps_entries")
class VersionsStartAnewAtOpen(DictBackend):
    """Each backend counts versions from 1, so one comes again after the store was reopened."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.writes = 0

    def new_version(self, key: str, value: bytes) -> Hashable:
        self.writes += 1
        return self.writes


@caught_by("version_of_each_write")
class VersionIsTheContent(DictBackend):
    """The version is a digest of the value, so the same value written twice is one version."""

    def new_version(self, key: str, value: bytes) -> Hashable:
        return hash(bytes(value))


@caught_by("version_of_each_write")
class EqualValueIsNotWritten(DictBackend):
    """A set of the value that is there already, if it is long, only renews its life, and the version stays."""

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        entry = await self.get(key)
        if ttl is not None and entry is not None and entry.value == value and len(value) > 64:
            await self.touch(key, ttl=ttl)
            return 0
        return await super().set(key, value, ttl=ttl)


@caught_by("version_of_each_write")
class VersionIsTheTime(DictBackend):
    """The version is the time of the write, so two writes within one tick of the clock are one version."""

    def new_version(self, key: str, value: bytes) -> Hashable:
        return self.clock()


@caught_by("version_of_each_write")
class VersionChangesWithEveryRead(DictBackend):
    """Each read gives the entry a new version, so nobody can use the one that he read before."""

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        if entry is not None:
            self.table.records[key] = self.table.records[key]._replace(version=next(self.table.versions))
        return entry


@caught_by("version_of_each_write")
class VersionCannotBeHashed(DictBackend):
    """The version is a list, which no dictionary takes as a key."""

    def new_version(self, key: str, value: bytes) -> Hashable:
        return [next(self.table.versions)]  # type: ignore[return-value] # the defect


@caught_by("size_after_delete")
class DeleteOfAMissIsTrue(DictBackend):
    """A delete of a key that is not there returns True."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return await super().delete(key, version=version) or version is None


@caught_by("version_guards_delete")
class DeleteOfAnotherVersionIsTrue(DictBackend):
    """A delete by a stale version leaves the newer entry, and returns True."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return await super().delete(key, version=version) or key in self.table.records


@caught_by("touch_keeps_the_value")
class TouchOfAMissIsTrue(DictBackend):
    """A touch of a key that is not there returns True."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await super().touch(key, ttl=ttl, version=version) or key not in self.table.records


@caught_by("add_only_if_absent")
class AddOverwrites(DictBackend):
    """An add that finds the key taken stores its value and returns False."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.turn() as now:
            free = key not in self.table.records
            self.store(key, value, ttl, now)
            return free


@caught_by("add_only_if_absent")
class AddIsAlwaysTrue(DictBackend):
    """An add that finds the key taken leaves it and returns True."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        await super().add(key, value, ttl=ttl)
        return True


@caught_by("concurrent_adds")
class AddRacesBetweenTasks(DictBackend):
    """An add looks first and stores later, so two tasks that meet both win."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.turn():
            if key in self.table.records:
                self.table.use(key)
                return False
        await asyncio.sleep(0)
        with self.turn() as now:
            self.store(key, value, ttl, now)
            return True


@caught_by("concurrent_stores", "concurrent_writes_at_the_limit")
class StoringRacesBetweenTasks(DictBackend):
    """A set reads the account, waits, and writes it back, so that what others did meanwhile is lost."""

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.turn() as now:
            before = self.table.bytes
            evicted = self.store(key, value, ttl, now)
            change = self.table.bytes - before
        await asyncio.sleep(0)
        with self.turn():
            self.table.bytes = before + change
            return evicted


@caught_by("version_after_expiry")
class VersionsStartAnewAfterAnExpiry(DictBackend):
    """A version is the number of writes since the key last expired, so it comes again."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.writes: Dict[str, int] = {}

    def purge(self, now: float) -> None:
        for key in self.dead(now):
            self.writes.pop(key, None)
        super().purge(now)

    def new_version(self, key: str, value: bytes) -> Hashable:
        self.writes[key] = self.writes.get(key, 0) + 1
        return self.writes[key]


@caught_by("version_of_each_write")
class VersionsStartAnewAfterAClear(DictBackend):
    """Versions are counted from 1 again when the namespace was cleared."""

    async def clear(self) -> int:
        cleared = await super().clear()
        self.table.versions = itertools.count(1)
        return cleared


@caught_by("add_only_if_absent")
class LosingAddRenewsTheVersion(DictBackend):
    """An add that finds the key taken leaves the value and gives it a new version."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        stored = await super().add(key, value, ttl=ttl)
        if not stored:
            self.table.records[key] = self.table.records[key]._replace(version=next(self.table.versions))
        return stored


@caught_by("version_guards_touch")
class EternalTouchIgnoresTheVersion(DictBackend):
    """A touch without a life makes whatever is there eternal."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await super().touch(key, ttl=ttl, version=None if ttl is None else version)


@caught_by("concurrent_touches")
class TouchWritesTheValueBack(DictBackend):
    """A touch reads the entry, waits, and writes it back with its new life, over what was stored meanwhile."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        record = self.table.records.get(key)
        await asyncio.sleep(0)
        touched = await super().touch(key, ttl=ttl, version=version)
        if touched and record is not None:
            self.table.bytes += len(record.value) - len(self.table.records[key].value)
            self.table.records[key] = self.table.records[key]._replace(value=record.value)
        return touched
