"""Backends whose account goes wrong: entries and bytes that nobody holds, or that somebody holds uncounted."""

from __future__ import annotations

from typing import Dict, Hashable, List, Optional, Set

from claude_force_cache import Clock, EntryTooLargeError, Usage

from .reference import DictBackend, Record, Shelf, Table
from .registry import caught_by


@caught_by("size_of_overwrite", "stateful_agreement", "corrupt_by_an_older_version")
class OverwriteKeepsTheOldSize(DictBackend):
    """An overwrite adds the new size and never takes the old one off."""

    def replace(self, key: str) -> None:
        self.table.records.pop(key)


@caught_by("size_of_overwrite")
class OverwriteNeverShrinks(DictBackend):
    """An overwrite adds what the new value has more, and does not take off what it has less."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        old = self.table.records.get(key)
        evicted = super().store(key, value, ttl, now)
        self.table.bytes += 0 if old is None else max(0, len(old.value) - len(value))
        return evicted


@caught_by("size_of_overwrite")
class OverwriteOfTheSameSizeCountsAgain(DictBackend):
    """An overwrite by a value as long as the old one is taken for a new entry."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        old = self.table.records.get(key)
        evicted = super().store(key, value, ttl, now)
        self.table.bytes += len(key) + len(value) if old and len(old.value) == len(value) else 0
        return evicted


@caught_by("size_of_expired_overwrite")
class OverwriteOfAnExpiredEntryKeepsItsSize(DictBackend):
    """An entry that has expired is overwritten without taking its size off."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        self.table.bytes += self.expired_sizes.pop(key, 0)
        return super().store(key, value, ttl, now)

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.expired_sizes: Dict[str, int] = {}

    def purge(self, now: float) -> None:
        for key in self.dead(now):
            self.expired_sizes[key] = self.table.size(key, self.table.records[key])
        super().purge(now)


class _EmptyIsFree(Table):
    def size(self, key: str, record: Record) -> int:
        return super().size(key, record) if record.value else 0


@caught_by("size_of_set")
class EmptyValueCountsNothing(DictBackend):
    """An entry with an empty value counts nothing, not even its key."""

    table_type = _EmptyIsFree


class _NoKey(Table):
    def size(self, key: str, record: Record) -> int:
        return len(record.value)


@caught_by("size_of_set")
class SizeWithoutTheKey(DictBackend):
    """The size of an entry is that of its value alone."""

    table_type = _NoKey


class _Overhead(Table):
    def size(self, key: str, record: Record) -> int:
        return super().size(key, record) + 8


@caught_by("size_of_set")
class SizeWithTheHeader(DictBackend):
    """The size of an entry includes what the store needs for itself."""

    table_type = _Overhead


@caught_by("size_after_delete", "stateful_agreement")
class DeleteSubtractsTwice(DictBackend):
    """A delete takes the size off twice."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        record = self.table.records.get(key)
        deleted = await super().delete(key, version=version)
        self.table.bytes -= self.table.size(key, record) if deleted and record else 0
        return deleted


@caught_by(
    "size_after_delete",
    "corrupt_by_flip",
    "corrupt_by_truncation",
    "corrupt_by_extension",
    "corrupt_by_garbage",
    "corrupt_by_swap",
)
class DeleteLeavesTheAccount(DictBackend):
    """A delete takes the entry away and leaves its size."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        record = self.table.records.get(key)
        deleted = await super().delete(key, version=version)
        self.table.bytes += self.table.size(key, record) if deleted and record else 0
        return deleted


@caught_by("size_after_delete")
class SecondDeleteSubtractsAgain(DictBackend):
    """A delete of what was deleted before takes its size off once more, so the account falls below zero."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.deleted: Dict[str, int] = {}

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        record = self.table.records.get(key)
        if await super().delete(key, version=version):
            self.deleted[key] = self.table.size(key, record) if record else 0
            return True
        if version is None:
            self.table.bytes -= self.deleted.get(key, 0)
        return False


@caught_by("version_guards_delete")
class StaleDeleteSubtracts(DictBackend):
    """A delete by a stale version leaves the newer entry, but takes its size off."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        deleted = await super().delete(key, version=version)
        record = self.table.records.get(key)
        self.table.bytes -= self.table.size(key, record) if not deleted and record else 0
        return deleted


@caught_by("touch_keeps_the_value")
class TouchCountsAgain(DictBackend):
    """A touch is counted as if it stored the entry."""

    def renew(self, key: str, expires: Optional[float]) -> None:
        super().renew(key, expires)
        self.table.bytes += self.table.size(key, self.table.records[key])


@caught_by("add_only_if_absent")
class LosingAddIsCounted(DictBackend):
    """An add that finds the key taken is counted all the same."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        stored = await super().add(key, value, ttl=ttl)
        self.table.bytes += 0 if stored else len(key) + len(value)
        return stored


@caught_by("size_after_expiry", "stateful_agreement")
class ExpiryLeavesTheAccount(DictBackend):
    """What expires is taken away without its size."""

    def purge(self, now: float) -> None:
        for key in self.dead(now):
            del self.table.records[key]


@caught_by("ttl_of_every_verb")
class ExpiredAreCounted(DictBackend):
    """``usage`` counts expired entries until another verb clears them away."""

    async def usage(self) -> Usage:
        with self.locked():
            return Usage(len(self.table.records), self.table.bytes)


@caught_by("limit_is_hard")
class EvictionLeavesTheAccount(DictBackend):
    """What is evicted to make room is taken away with its key, but without its value."""

    def make_room(self) -> int:
        before = len(self.table.records)
        evicted = super().make_room()
        assert len(self.table.records) == before - evicted
        self.table.bytes += evicted
        return evicted


@caught_by("size_after_clear", "stateful_agreement_with_clear")
class ClearLeavesTheAccount(DictBackend):
    """``clear`` takes the entries away and leaves their size."""

    async def clear(self) -> int:
        with self.turn():
            count = len(self.table.records)
            self.table.records.clear()
            return count


@caught_by("size_after_clear")
class ClearCountsNothing(DictBackend):
    """``clear`` does its work and returns 0."""

    async def clear(self) -> int:
        await super().clear()
        return 0


@caught_by("ttl_of_every_verb")
class ClearCountsTheExpired(DictBackend):
    """``clear`` returns the expired with the living."""

    async def clear(self) -> int:
        with self.locked():
            count = len(self.table.records)
        await super().clear()
        return count


@caught_by("size_after_refusal")
class RefusedOverwriteLeavesTheAccount(DictBackend):
    """A refused overwrite takes its predecessor away and leaves its size."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        before = self.table.bytes
        try:
            return super().store(key, value, ttl, now)
        except EntryTooLargeError:
            self.table.bytes = before
            raise


@caught_by("size_of_bulk")
class UsageIsCached(DictBackend):
    """``usage`` answers from a look that is taken anew only when the number of entries has changed."""

    cached = Usage(0, 0)

    async def usage(self) -> Usage:
        usage = await super().usage()
        if usage.entries != self.cached.entries:
            self.cached = usage
        return self.cached


@caught_by("size_after_delete")
class UsageCountsKeysForEver(DictBackend):
    """``usage`` is right about the bytes, and counts as entries all keys that it ever wrote."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.seen = set(self.table.records)

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        evicted = super().store(key, value, ttl, now)
        self.seen.add(key)
        return evicted

    async def usage(self) -> Usage:
        return Usage(len(self.seen), (await super().usage()).bytes)


@caught_by("size_after_native_expiry")
class StoresOwnExpiryLeavesTheAccount(DictBackend):
    """What the store itself lets expire stays in the account, which only the verbs keep."""

    def drop(self, key: str) -> None:
        self.table.records.pop(key, None)


@caught_by("reopening_keeps_entries")
class ReopenStartsAtZero(DictBackend):
    """The account starts at zero whenever the store is opened, whatever it holds."""

    async def open(self) -> None:
        self.table.bytes = 0
        await super().open()


@caught_by("stateful_agreement")
class OverwriteOfATouchedEntryKeepsItsSize(DictBackend):
    """What was touched is not taken off the account when it is overwritten."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.touched: Set[Hashable] = set()

    def renew(self, key: str, expires: Optional[float]) -> None:
        super().renew(key, expires)
        self.touched.add(self.table.records[key].version)

    def replace(self, key: str) -> None:
        if self.table.records[key].version in self.touched:
            del self.table.records[key]
        else:
            super().replace(key)


@caught_by("stateful_agreement")
class OverwriteAfterReopeningKeepsTheSize(DictBackend):
    """What was there when the store was opened is not taken off the account when it is overwritten."""

    async def open(self) -> None:
        self.found = {record.version for record in self.table.records.values()}
        await super().open()

    def replace(self, key: str) -> None:
        if self.table.records[key].version in self.found:
            del self.table.records[key]
        else:
            super().replace(key)


@caught_by("size_after_many_expiries")
class ClearsAwayAHundredExpired(DictBackend):
    """A verb clears away at most a hundred expired entries, and counts the others on."""

    def dead(self, now: float) -> List[str]:
        return super().dead(now)[:100]
