"""Backends that let entries live too long or too short, or show them when they are gone."""

from __future__ import annotations

import math
import time
from typing import AsyncIterator, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple

from claude_force_cache import Capabilities, Clock, Entry, EntryInfo

from .reference import DictBackend, Record, Shelf
from .registry import caught_by


@caught_by("ttl_edge")
class LivesAtTheEdge(DictBackend):
    """At the very moment of its expiry an entry still lives."""

    def dead(self, now: float) -> List[str]:
        return [k for k, r in self.table.records.items() if r.expires is not None and r.expires < now]


@caught_by("ttl_edge")
class LivesInWholeSeconds(DictBackend):
    """A life is rounded up to whole seconds, which the capabilities do not say."""

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return None if ttl is None else now + math.ceil(ttl)


@caught_by("ttl_edge")
class DiesEarly(DictBackend):
    """A life is rounded down to whole seconds, so an entry dies before its time."""

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return None if ttl is None else now + math.floor(ttl)


@caught_by("ttl_edge")
class NeverExpires(DictBackend):
    """Lives are written down, and nobody looks at them."""

    def dead(self, now: float) -> List[str]:
        return []


@caught_by("ttl_far_future")
class FarFutureIsNow(DictBackend):
    """A life of more than thirty days is read as a date, which is long past."""

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return ttl if ttl is not None and ttl > 30 * 86400 else super().expiry(ttl, now)


@caught_by("ttl_far_future")
class LongLivesAreCut(DictBackend):
    """A life of more than a year is cut to one, which the capabilities do not say."""

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return super().expiry(None if ttl is None else min(ttl, 365 * 86400), now)


@caught_by("ttl_renewed_by_overwrite")
class OverwriteKeepsTheLife(DictBackend):
    """An overwrite keeps the life of its predecessor."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        old = self.table.records.get(key)
        evicted = super().store(key, value, ttl, now)
        if old is not None:
            self.renew(key, old.expires)
        return evicted


@caught_by("ttl_dropped_by_overwrite")
class EternalOverwriteKeepsTheLife(DictBackend):
    """An overwrite without a life keeps that of its predecessor."""

    def store(self, key: str, value: bytes, ttl: Optional[float], now: float) -> int:
        old = self.table.records.get(key)
        evicted = super().store(key, value, ttl, now)
        if old is not None and ttl is None:
            self.renew(key, old.expires)
        return evicted


@caught_by("size_after_expiry")
class BulkForgetsTheLife(DictBackend):
    """``set_many`` stores everything for ever."""

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return await super().set_many({key: (value, None) for key, (value, _) in items.items()})


@caught_by("ttl_of_every_verb")
class ExpiredAreRead(DictBackend):
    """``get`` returns an expired entry that no other verb has cleared away."""

    async def get(self, key: str) -> Optional[Entry]:
        with self.locked():
            record = self.table.records.get(key)
            if record is None:
                return None
            self.table.use(key)
            return Entry(record.value, record.version)


@caught_by("ttl_of_every_verb")
class ExpiredAreReadInBulk(DictBackend):
    """``get_many`` returns expired entries that no other verb has cleared away."""

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        with self.locked():
            found = {key: self.table.records[key] for key in keys if key in self.table.records}
            for key in found:
                self.table.use(key)
            return {key: Entry(record.value, record.version) for key, record in found.items()}


@caught_by("ttl_of_every_verb")
class ExpiredAreScanned(DictBackend):
    """``scan`` yields expired entries that no other verb has cleared away."""

    async def scan(self) -> AsyncIterator[EntryInfo]:
        with self.locked() as now:
            infos = self.infos(now)
        for info in infos:
            yield info


@caught_by("ttl_of_every_verb")
class ExpiredAreDeleted(DictBackend):
    """A delete of an expired entry returns True."""

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        with self.locked():
            if not self.holds(key, version):
                return False
            self.table.remove(key)
            return True


@caught_by("ttl_of_every_verb")
class ExpiredHoldTheirKey(DictBackend):
    """``add`` takes an expired entry for a present one."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self.locked():
            if key in self.table.records:
                return False
        return await super().add(key, value, ttl=ttl)


@caught_by("ttl_of_every_verb")
class TouchRevives(DictBackend):
    """A touch gives an expired entry a new life."""

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        with self.locked() as now:
            if not self.holds(key, version):
                return False
            self.renew(key, self.expiry(ttl, now))
            self.table.use(key)
            return True


@caught_by("ttl_set_by_touch")
class TouchKeepsTheLife(DictBackend):
    """A touch returns True and leaves the life as it was."""

    def renew(self, key: str, expires: Optional[float]) -> None:
        return


@caught_by("ttl_set_by_touch")
class TouchAddsToTheLife(DictBackend):
    """A touch counts the new life from the end of the old one."""

    def renew(self, key: str, expires: Optional[float]) -> None:
        old = self.table.records[key].expires
        left = 0.0 if old is None else old - self.clock()
        super().renew(key, None if expires is None else expires + left)


@caught_by("ttl_set_by_touch")
class TouchNeverMakesEternal(DictBackend):
    """A touch without a life leaves the old one."""

    def renew(self, key: str, expires: Optional[float]) -> None:
        if expires is not None:
            super().renew(key, expires)


@caught_by("ttl_set_by_touch")
class TouchNeverShortens(DictBackend):
    """A touch only ever makes a life longer."""

    def renew(self, key: str, expires: Optional[float]) -> None:
        old = self.table.records[key].expires
        if expires is None or (old is not None and expires > old):
            super().renew(key, expires)


@caught_by("ttl_in_scan")
class ScanTellsTheWholeLife(DictBackend):
    """``scan`` tells the life that an entry was given, not what remains of it."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.lives: Dict[Optional[float], Optional[float]] = {None: None}

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        expires = super().expiry(ttl, now)
        self.lives[expires] = ttl
        return expires

    def infos(self, now: float) -> List[EntryInfo]:
        lives = [self.lives.get(record.expires) for record in self.table.records.values()]
        return [info._replace(ttl=ttl) for info, ttl in zip(super().infos(now), lives)]


@caught_by("ttl_in_scan")
class ScanTellsTheDateOfExpiry(DictBackend):
    """``scan`` tells when an entry expires, not how long it has left."""

    def infos(self, now: float) -> List[EntryInfo]:
        return super().infos(0.0)


@caught_by("ttl_when_the_clock_is_set_back")
class ClockStepBackRevives(DictBackend):
    """What has expired is only hidden, and comes back when the clock is set back."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.hidden: Dict[str, Record] = {}

    def purge(self, now: float) -> None:
        for key in self.dead(now):
            self.hidden[key] = self.table.records[key]
        super().purge(now)
        for key, record in self.hidden.items():
            if key not in self.table.records and record.expires is not None and now < record.expires:
                self.table.put(key, record)


@caught_by("ttl_across_reopening")
class ReopenMakesEternal(DictBackend):
    """The lives of the entries are lost when the store is closed, so they live for ever afterwards."""

    async def close(self) -> None:
        for key in self.table.records if self.opened else ():
            self.renew(key, None)
        await super().close()


@caught_by("ttl_across_reopening")
class ReopenRevives(DictBackend):
    """What expired since the last look gets a new life when the store is opened."""

    async def open(self) -> None:
        for key in self.dead(self.clock()):
            self.renew(key, self.clock() + 60)
        await super().open()


@caught_by("ttl_edge")
class IgnoresItsClock(DictBackend):
    """Time is read from the system, whatever clock the backend is given."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, None)


@caught_by("ttl_not_renewed_by_reading")
class ReadingProlongsTheLife(DictBackend):
    """Each read makes the life of an entry a second longer."""

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        expires = self.table.records[key].expires if entry else None
        if expires is not None:
            self.renew(key, expires + 1)
        return entry


@caught_by("ttl_not_renewed_by_reading")
class LosingAddGivesItsLife(DictBackend):
    """An add that finds the key taken gives its own life to the entry that is there."""

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        stored = await super().add(key, value, ttl=ttl)
        self.renew(key, self.expiry(ttl, self.clock()))
        return stored


@caught_by("ttl_by_the_stores_own_clock")
class OwnClockCountsMilliseconds(DictBackend):
    """Without a clock that is given, time is counted in milliseconds and lives in seconds."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock or (lambda: time.time() * 1000))


@caught_by("capability_injectable_clock")
class DeclaresThatItTakesNoClock(DictBackend):
    """The capabilities say that the clock cannot be injected, and it can."""

    capabilities = Capabilities(injectable_clock=False, shared_between_processes=False, shared_between_machines=False)


@caught_by("capability_ttl_resolution")
class DeclaresACoarseClock(DictBackend):
    """The capabilities promise expiry to the second, though it is exact: a weakness that is not there."""

    capabilities = Capabilities(ttl_resolution=1.0, shared_between_processes=False, shared_between_machines=False)


@caught_by("ttl_edge")
class LivesInEighthsOfASecond(DictBackend):
    """A life is rounded up to an eighth of a second, which the capabilities do not say."""

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return super().expiry(None if ttl is None else math.ceil(ttl * 8) / 8, now)


@caught_by("ttl_edge")
class ShortLivesAreEternal(DictBackend):
    """A life of less than a tenth of a second is rounded to none, which is taken for one without an end."""

    def expiry(self, ttl: Optional[float], now: float) -> Optional[float]:
        return super().expiry(ttl if ttl is None or ttl >= 0.1 else None, now)
