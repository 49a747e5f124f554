"""Backends that hold the limit loosely, evict what they should keep, or refuse in the wrong way."""

from __future__ import annotations

from typing import AsyncIterator, Dict, Hashable, Mapping, Optional, Sequence, Tuple

from claude_force_cache import Capabilities, Entry, EntryInfo, EntryTooLargeError

from .reference import DictBackend, Record, Table
from .registry import caught_by
from .weak import Partitioned

Items = Mapping[str, Tuple[bytes, Optional[float]]]


@caught_by("limit_is_hard")
class LimitIsNotHeld(DictBackend):
    """Nothing is ever evicted."""

    def too_full(self) -> bool:
        return False


@caught_by("limit_is_hard", "stateful_agreement")
class LimitIsCheckedBeforeTheWrite(DictBackend):
    """Room is made for what is there already, and then the new entry is added."""

    def admit(self, key: str, record: Record) -> int:
        evicted = self.make_room()
        self.table.put(key, record)
        return evicted


@caught_by("limit_is_hard")
class LimitIsOvershotByOneByte(DictBackend):
    """The limit is held with one byte too many."""

    def too_full(self) -> bool:
        return self.max_bytes is not None and self.table.bytes > self.max_bytes + 1


@caught_by("size_of_largest_entry")
class LimitItselfIsRefused(DictBackend):
    """An entry exactly as large as the limit is refused."""

    def refuse(self, key: str, record: Record) -> None:
        super().refuse(key, record)
        if self.table.size(key, record) == self.max_bytes:
            raise EntryTooLargeError(self.max_bytes, self.max_bytes)


@caught_by("eviction_order")
class EvictsTheMostRecent(DictBackend):
    """Of the others, the one that was used last goes first."""

    def victim(self) -> str:
        return list(self.table.records)[-2:][0]


@caught_by("eviction_spares_the_new")
class EvictsWhatItJustStored(DictBackend):
    """The new entry is the first to go."""

    def victim(self) -> str:
        return list(self.table.records)[-1]


@caught_by("eviction_order")
class EvictsTheLargest(DictBackend):
    """The largest of the others goes first."""

    def victim(self) -> str:
        others = list(self.table.records)[:-1] or list(self.table.records)
        return max(others, key=lambda key: self.table.size(key, self.table.records[key]))


@caught_by("eviction_order")
class ReadIsNoUse(DictBackend):
    """``get`` does not count as a use."""

    async def get(self, key: str) -> Optional[Entry]:
        with self.turn():
            record = self.table.records.get(key)
            return None if record is None else Entry(record.value, record.version)


class _InOrderOfWriting(Table):
    def use(self, key: str) -> None:
        return


@caught_by("eviction_order")
class EvictsTheOldest(DictBackend):
    """Entries go in the order in which they were written, however often they are used."""

    table_type = _InOrderOfWriting


@caught_by("eviction_order")
class OverwriteIsNoUse(DictBackend):
    """An overwrite leaves the entry at its place in the order of eviction."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        place = list(self.table.records).index(key) if key in self.table.records else None
        evicted = super().store(key, value, ttl, now)
        if place is not None:
            for later in list(self.table.records)[max(0, place - evicted) : -1]:
                self.table.use(later)
        return evicted


@caught_by("eviction_order")
class TouchIsNoUse(DictBackend):
    """A touch does not count as a use."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        with self.turn() as now:
            if not self.holds(key, version):
                return False
            self.renew(key, self.expiry(ttl, now))
            return True


@caught_by("eviction_order")
class LosingAddIsNoUse(DictBackend):
    """An add that finds the key taken does not count as a use of what it found."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.turn() as now:
            if key in self.table.records:
                return False
            self.store(key, value, ttl, now)
            return True


@caught_by("eviction_order")
class BulkReadIsNoUse(DictBackend):
    """``get_many`` does not count as a use."""

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        with self.turn():
            records = self.table.records
            return {key: Entry(records[key].value, records[key].version) for key in keys if key in records}


@caught_by("eviction_ignores_scans")
class ScanIsAUse(DictBackend):
    """``scan`` counts as a use of what it yields, against the order of the keys."""

    async def scan(self) -> AsyncIterator[EntryInfo]:
        async for info in super().scan():
            yield info
        for key in sorted(self.table.records, reverse=True):
            self.table.use(key)


@caught_by("eviction_no_more_than_needed")
class EvictsOneMore(DictBackend):
    """Once it evicts, it evicts one more than it needs to."""

    def make_room(self) -> int:
        evicted = super().make_room()
        if evicted and len(self.table.records) > 1:
            self.table.remove(self.victim())
            evicted += 1
        return evicted


@caught_by("eviction_no_more_than_needed")
class EvictsToHalf(DictBackend):
    """Once it evicts, it goes down to half of the limit, which the capabilities do not say."""

    def make_room(self) -> int:
        evicted = super().make_room()
        while evicted and self.max_bytes and self.table.bytes > self.max_bytes / 2 and len(self.table.records) > 1:
            self.table.remove(self.victim())
            evicted += 1
        return evicted


@caught_by("eviction_of_the_expired_first")
class EvictsTheLivingFirst(DictBackend):
    """Room is made without clearing away what has expired, so living entries go in its place."""

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.locked() as now:
            return self.store(key, value, ttl, now)


@caught_by("eviction_no_more_than_needed")
class OverwriteMakesRoomForBoth(DictBackend):
    """An overwrite makes room beside its predecessor, and evicts others for nothing."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        limit, size = self.max_bytes, len(key) + len(value)
        others = [other for other in self.table.records if other != key]
        evicted = 0
        while limit is not None and size <= limit < size + self.table.bytes and key in self.table.records and others:
            self.table.remove(others.pop(0))
            evicted += 1
        return evicted + super().store(key, value, ttl, now)


@caught_by("eviction_count")
class ReportsNoEvictions(DictBackend):
    """``set`` evicts and says that it did not."""

    def make_room(self) -> int:
        super().make_room()
        return 0


@caught_by("eviction_count")
class ReportsTheReplacedAsEvicted(DictBackend):
    """``set`` counts the predecessor among the evicted."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        replaced = key in self.table.records
        return super().store(key, value, ttl, now) + replaced


@caught_by("eviction_count_without_expired")
class ReportsTheExpiredAsEvicted(DictBackend):
    """``set`` counts what it found expired among the evicted."""

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self.locked() as now:
            expired = self.dead(now)
        return await super().set(key, value, ttl=ttl) + len(expired)


@caught_by("eviction_count")
class BulkReportsNoEvictions(DictBackend):
    """``set_many`` evicts and says that it did not."""

    async def set_many(self, items: Items) -> int:
        await super().set_many(items)
        return 0


@caught_by("size_after_refusal")
class RefusalFlushes(DictBackend):
    """An entry that cannot fit makes everything go before it is refused."""

    def refuse(self, key: str, record: Record) -> None:
        try:
            super().refuse(key, record)
        except EntryTooLargeError:
            for other in list(self.table.records):
                self.table.remove(other)
            raise


@caught_by("size_after_refusal")
class RefusalKeepsThePredecessor(DictBackend):
    """A refused overwrite leaves its predecessor, which is out of date."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        self.refuse(key, Record(value, None, None))
        return super().store(key, value, ttl, now)


@caught_by("size_after_refused_add")
class RefusedAddTakesTheHolder(DictBackend):
    """An add that could not fit anyway is refused before it looks, and takes the holder of the key with it."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        if self.max_bytes is not None and len(key) + len(value) > self.max_bytes:
            await self.delete(key)
        return await super().add(key, value, ttl=ttl)


@caught_by("size_after_refused_add")
class RefusedAddRaisesForATakenKey(DictBackend):
    """An add that could not fit is refused before it looks whether the key is free."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.turn():
            self.refuse(key, Record(value, None, None))
        return await super().add(key, value, ttl=ttl)


@caught_by("size_after_refusal")
class RefusalIsSilent(DictBackend):
    """An entry that cannot fit is dropped without a word."""

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        try:
            return await super().set(key, value, ttl=ttl)
        except EntryTooLargeError:
            return 0


@caught_by("size_after_refusal")
class RefusalTellsTheValueAlone(DictBackend):
    """The error of a refusal gives the size of the value without the key."""

    def refuse(self, key: str, record: Record) -> None:
        try:
            super().refuse(key, record)
        except EntryTooLargeError as error:
            raise EntryTooLargeError(len(record.value), error.limit) from None


@caught_by("size_of_bulk")
class RefusalStopsTheBatch(DictBackend):
    """``set_many`` stops at the first entry that is refused."""

    async def set_many(self, items: Items) -> int:
        return sum([await self.set(key, value, ttl=ttl) for key, (value, ttl) in items.items()])


@caught_by("size_of_bulk")
class RefusalInABatchIsSilent(DictBackend):
    """``set_many`` stores what fits and does not report the rest."""

    async def set_many(self, items: Items) -> int:
        try:
            return await super().set_many(items)
        except EntryTooLargeError:
            return 0


@caught_by("limit_at_open")
class ReopenIgnoresTheLimit(DictBackend):
    """A store that is above the limit when it is opened stays so until the next write."""

    async def open(self) -> None:
        limit, self.max_bytes = self.max_bytes, None
        await super().open()
        self.max_bytes = limit


class _Short(DictBackend):
    """Takes values of up to 1000 bytes, and says so."""

    capabilities = Capabilities(max_value_bytes=1000, shared_between_processes=False, shared_between_machines=False)
    longest = 1000

    def refuse(self, key: str, record: Record) -> None:
        super().refuse(key, record)
        if len(record.value) > self.longest:
            raise EntryTooLargeError(self.table.size(key, record), len(key) + self.longest)


@caught_by("capability_max_value_bytes")
class LongestValueIsRefused(_Short):
    """The longest value that the capabilities allow is refused."""

    longest = 999


@caught_by("capability_max_value_bytes")
class LongestValueMakesRoomForTheKey(_Short):
    """The longest value that the capabilities allow is taken under a short key alone."""

    def refuse(self, key: str, record: Record) -> None:
        super().refuse(key, record)
        if self.table.size(key, record) > 1100:
            raise EntryTooLargeError(self.table.size(key, record), 1100)


@caught_by("capability_max_value_bytes")
class TooLongValuesAreDropped(_Short):
    """A value above the longest that the capabilities allow is dropped without a word."""

    longest = 10**9

    def admit(self, key: str, record: Record) -> int:
        return super().admit(key, record) if len(record.value) <= 1000 else 0


@caught_by("eviction_no_more_than_needed")
class EvictsBeforeTheLimit(DictBackend):
    """Room is made when the limit is reached, not when it is passed."""

    def too_full(self) -> bool:
        return self.max_bytes is not None and self.table.bytes >= self.max_bytes and len(self.table.records) > 1


@caught_by("limit_is_hard")
class EvictsAtMostTen(DictBackend):
    """One write evicts at most ten entries, and overshoots the limit if it needs more."""

    def make_room(self) -> int:
        evicted = 0
        while self.too_full() and evicted < 10:
            self.table.remove(self.victim())
            evicted += 1
        return evicted


@caught_by("eviction_ignores_scans")
class StaleTouchIsAUse(DictBackend):
    """A touch by a stale version changes nothing, and counts as a use."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        touched = await super().touch(key, ttl=ttl, version=version)
        if key in self.table.records:
            self.table.use(key)
        return touched


@caught_by("size_of_bulk")
class RefusalInABatchTellsTheLast(DictBackend):
    """``set_many`` reports the last entry that was refused, not the first."""

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        evicted, refused = 0, None
        for key, (value, ttl) in items.items():
            try:
                evicted += await self.set(key, value, ttl=ttl)
            except EntryTooLargeError as error:
                refused = error
        if refused is not None:
            raise refused
        return evicted


@caught_by("size_after_refused_add")
class RefusedAddMixesUpItsError(DictBackend):
    """The error of a refused add has size and limit in each other's place."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        try:
            return await super().add(key, value, ttl=ttl)
        except EntryTooLargeError as error:
            raise EntryTooLargeError(error.limit, error.size) from None


@caught_by("eviction_no_more_than_needed")
class EvictsFromEveryPartition(Partitioned):
    """Where one of its partitions is full, all are emptied but for the new entry."""

    def make_room(self) -> int:
        evicted = super().make_room()
        while evicted and len(self.table.records) > 1:
            self.table.remove(self.victim())
            evicted += 1
        return evicted
