"""Backends that change keys or values, mix namespaces, or enumerate wrongly."""

from __future__ import annotations

import hashlib
from typing import AsyncIterator, Dict, Hashable, List, Mapping, Optional, Sequence, Set, Tuple

from claude_force_cache import BackendUnavailableError, Clock, Entry, EntryInfo, Usage

from .reference import DictBackend, Shelf
from .registry import caught_by


class _Rekeyed(DictBackend):
    """Stores under ``key_of(key)`` what is asked for as ``key``."""

    def key_of(self, key: str) -> str:
        raise NotImplementedError

    async def get(self, key: str) -> Optional[Entry]:
        return await super().get(self.key_of(key))

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        return await super().set(self.key_of(key), value, ttl=ttl)

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        return await super().add(self.key_of(key), value, ttl=ttl)

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return await super().delete(self.key_of(key), version=version)

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await super().touch(self.key_of(key), ttl=ttl, version=version)


@caught_by("key_neighbours")
class KeysAreCut(_Rekeyed):
    """Of a key only the first 64 characters count."""

    def key_of(self, key: str) -> str:
        return key[:64]


@caught_by("key_neighbours")
class KeysLoseTheirDots(_Rekeyed):
    """Dots in a key are dropped."""

    def key_of(self, key: str) -> str:
        return key.replace(".", "")


@caught_by("key_neighbours")
class KeysFoldTheirMarks(_Rekeyed):
    """Hyphens in a key are taken for underscores."""

    def key_of(self, key: str) -> str:
        return key.replace("-", "_")


@caught_by("key_round_trip")
class KeysAreDigested(_Rekeyed):
    """Entries are stored, scanned and counted under a digest of the key."""

    def key_of(self, key: str) -> str:
        return hashlib.sha1(key.encode()).hexdigest()

    def peek(self, key: str) -> Optional[bytes]:
        return super().peek(self.key_of(key))

    def poke(self, key: str, value: bytes) -> None:
        super().poke(self.key_of(key), value)


class _Revalued(DictBackend):
    """Returns ``value_of(value)`` for what was stored as ``value``."""

    def value_of(self, value: bytes) -> bytes:
        raise NotImplementedError

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        return None if entry is None else entry._replace(value=self.value_of(entry.value))


@caught_by("value_round_trip")
class ValuesAreText(_Revalued):
    """Values pass through a text encoding on their way back."""

    def value_of(self, value: bytes) -> bytes:
        return value.decode(errors="replace").encode()


@caught_by("value_round_trip")
class ValuesLoseTheirNewline(_Revalued):
    """White space at the end of a value is lost."""

    def value_of(self, value: bytes) -> bytes:
        return value.rstrip(b"\r\n")


@caught_by("value_round_trip")
class ValuesAreCut(_Revalued):
    """Of a value only the first 4096 bytes come back."""

    def value_of(self, value: bytes) -> bytes:
        return value[:4096]


@caught_by("value_not_aliased")
class ValueIsAnAlias(_Revalued):
    """A value comes back as a bytearray, by which the caller can change what is stored."""

    def value_of(self, value: bytes) -> bytes:
        return bytearray(value)  # type: ignore[return-value] # the defect


@caught_by("value_round_trip")
class EmptyIsAMiss(DictBackend):
    """An entry with an empty value is not found."""

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        return entry if entry and entry.value else None


@caught_by("value_round_trip")
class ReadingTakesTheEntry(DictBackend):
    """An entry can be read once."""

    async def get(self, key: str) -> Optional[Entry]:
        entry = await super().get(key)
        if entry is not None:
            self.table.remove(key)
        return entry


@caught_by("read_in_bulk")
class BulkReadMissesTheLast(DictBackend):
    """``get_many`` leaves out the last of several keys."""

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return await super().get_many(keys[:-1] if len(keys) > 1 else keys)


@caught_by("read_in_bulk")
class BulkReadMixesUp(DictBackend):
    """``get_many`` pairs the entries with the keys in order, also where one is missing."""

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return dict(zip(dict.fromkeys(keys), (await super().get_many(keys)).values()))


@caught_by("read_in_bulk")
class BulkReadFailsOnNothing(DictBackend):
    """``get_many`` of no keys raises, as a store may for a command without arguments."""

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        if not keys:
            raise BackendUnavailableError("wrong number of arguments")
        return await super().get_many(keys)


@caught_by("size_of_bulk")
class BulkWriteMissesTheLast(DictBackend):
    """``set_many`` leaves out the last of several entries."""

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return await super().set_many(dict(list(items.items())[: max(1, len(items) - 1)]))


@caught_by("scan_of_many")
class ScanMissesTheLast(DictBackend):
    """``scan`` leaves out the last entry of several."""

    def infos(self, now: float) -> List[EntryInfo]:
        infos = super().infos(now)
        return infos[:-1] if len(infos) > 1 else infos


@caught_by("scan_of_many")
class ScanEndsAtThePage(DictBackend):
    """``scan`` yields the first page of 100 entries and does not ask for the next."""

    def infos(self, now: float) -> List[EntryInfo]:
        return super().infos(now)[:100]


@caught_by("scan_of_many")
class ScanRepeats(DictBackend):
    """``scan`` yields the first entry again at the end."""

    def infos(self, now: float) -> List[EntryInfo]:
        infos = super().infos(now)
        return infos + infos[:1]


@caught_by("size_of_set")
class ScanTellsTheValueAlone(DictBackend):
    """``scan`` tells the size of the value without the key; the account is right."""

    def infos(self, now: float) -> List[EntryInfo]:
        return [info._replace(size=info.size - len(info.key)) for info in super().infos(now)]


@caught_by("scan_while_others_write")
class ScanRepeatsWhatIsWritten(DictBackend):
    """``scan`` looks at the store page by page, so an entry that is overwritten meanwhile comes again."""

    async def scan(self) -> AsyncIterator[EntryInfo]:
        seen: Set[Hashable] = set()
        while True:
            with self.turn() as now:
                versions = [record.version for record in self.table.records.values()]
                page = [pair for pair in zip(self.infos(now), versions) if pair[1] not in seen][:100]
            if not page:
                return
            for info, version in page:
                seen.add(version)
                yield info


@caught_by("scan_while_others_write")
class ScanFailsWhenItIsDisturbed(DictBackend):
    """``scan`` walks over the entries themselves, so a write or a delete meanwhile breaks it."""

    async def scan(self) -> AsyncIterator[EntryInfo]:
        with self.turn():
            pass
        for key, record in self.table.records.items():
            left = None if record.expires is None else record.expires - self.clock()
            yield EntryInfo(key, self.table.size(key, record), left)


class _Neighbour(DictBackend):
    """Knows the shelf that it shares with others."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace, max_bytes, clock)
        self.shelf, self.namespace = shelf, namespace


@caught_by("namespace_of_clear")
class ClearTakesItsNeighbours(_Neighbour):
    """``clear`` takes all namespaces whose names begin with that of its own."""

    async def clear(self) -> int:
        for name, table in self.shelf.items():
            if name.startswith(self.namespace) and name != self.namespace:
                for key in list(table.records):
                    table.remove(key)
        return await super().clear()


@caught_by("namespace_of_clear")
class ClearTakesTheStore(_Neighbour):
    """``clear`` flushes the whole store."""

    async def clear(self) -> int:
        for name, table in self.shelf.items():
            if name != self.namespace:
                for key in list(table.records):
                    table.remove(key)
        return await super().clear()


@caught_by("size_after_clear")
class ClearLeavesTheLast(DictBackend):
    """``clear`` leaves the newest entry, and knows it."""

    async def clear(self) -> int:
        with self.turn():
            keys = list(self.table.records)[:-1]
            for key in keys:
                self.table.remove(key)
            return len(keys)


@caught_by("namespace_of_entries")
class NamespacesFoldCase(DictBackend):
    """Namespaces that differ in case alone are one."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace.lower(), max_bytes, clock)


@caught_by("namespace_of_the_account")
class UsageCountsItsNeighbours(_Neighbour):
    """``usage`` counts the whole store."""

    async def usage(self) -> Usage:
        with self.turn():
            tables = self.shelf.values()
            return Usage(sum(len(table.records) for table in tables), sum(table.bytes for table in tables))


@caught_by("read_in_bulk")
class BulkReadEndsAtAThousand(DictBackend):
    """``get_many`` asks for the first thousand keys, as many as one command takes."""

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return await super().get_many(keys[:1000])


@caught_by("namespace_of_entries", "namespace_of_the_account", "namespace_of_clear")
class LongNamespacesAreCut(DictBackend):
    """Of a namespace only the first 40 characters count."""

    def __init__(self, shelf: Shelf, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> None:
        super().__init__(shelf, namespace[:40], max_bytes, clock)


@caught_by("size_of_set", "stateful_agreement")
class UsageIsAPlainTuple(DictBackend):
    """``usage`` returns the right numbers, without their names."""

    async def usage(self) -> Usage:
        return tuple(await super().usage())  # type: ignore[return-value]  # that is its defect


@caught_by("key_round_trip", "key_neighbours")
class ScanTellsKeysOfDigitsAsNumbers(DictBackend):
    """``scan`` yields numbers for keys that are made of digits, as a table without types does."""

    async def scan(self) -> AsyncIterator[EntryInfo]:
        async for info in super().scan():
            yield info._replace(key=int(info.key) if info.key.isdecimal() else info.key)  # type: ignore[arg-type]
