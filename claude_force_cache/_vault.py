"""The vault: sealed values under keyed names in a backend, and the tags that bind them."""

from __future__ import annotations

import asyncio
import hmac
import sys
from typing import (
    Awaitable,
    Callable,
    Dict,
    Generic,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

from ._backend import Backend, Clock, Entry, EntryInfo
from ._chunks import IncompleteEntryError, cut
from ._coalescing import Coalescing
from ._codecs import Codec
from ._errors import BackendUnavailableError, EntryTooLargeError, InvalidValueError, PartlyUnavailableError
from ._flight import Flight, SingleFlight
from ._guard import STORE_FACTOR, Call
from ._keys import KeyPart, encode_key, is_plain, spelling
from ._parts import Parts
from ._results import StoredEntry
from ._sealing import (
    AES,
    HMAC,
    MAX_LENGTH,
    CorruptEntryError,
    Life,
    Opened,
    Sealer,
    declared_length,
    is_stand_in,
    key_id_of,
)
from ._secrets import Secrets, derive_keys
from ._settings import CacheSettings
from ._tags import EPOCH_BYTES, Epochs, new_epoch, pack_epochs, unpack_epochs
from ._threads import Workers

__all__ = ["OFFLOAD_FROM", "Found", "Vault"]

V = TypeVar("V")
T = TypeVar("T")

OFFLOAD_FROM = 1 << 17
"""Values of this many bytes and more are sealed and opened in a thread: they would hold up the event loop."""

_BREATH = 1 << 15
"""After so many bytes of many values that are opened one after the other, the event loop has its turn."""

_Read = Dict[str, Optional[Entry]]
"""What was read, by name; None for what is not there."""

_TAG_SUFFIX = ".tag"
_MOST_TAG_NAMES = 4096
_MOST_KNOWN_BYTES = 1 << 23
"""What all keys whose names are remembered may take together, with the names."""

_NAME_BYTES = 256
"""What a name takes, with its share of the tables, rounded up."""

_LONGEST_KNOWN_KEY = 1 << 14

_LOOKS = 3
"""How often a value in parts is looked at that somebody replaces meanwhile, before it counts as a miss."""


class Found(Generic[V]):
    """A value that was found under one of its names, whole and not invalidated; fresh or not."""

    __slots__ = ("created_at", "data", "expires_at", "name", "tags", "value")

    def __init__(self, name: str, opened: Opened, value: V, tags: Tuple[str, ...]) -> None:
        self.name = name
        self.value = value
        self.data = opened.value
        self.created_at = opened.created_at
        self.expires_at = opened.expires_at
        self.tags = tags


class _Ring:
    """What one secret does for a cache: it names and seals entries."""

    def __init__(self, secret: bytes, settings: CacheSettings, schema: str) -> None:
        algorithm = AES if settings.encrypt else HMAC
        keys = derive_keys(secret, algorithm=algorithm, namespace=settings.namespace, tenant=settings.tenant)
        self._lookup = keys.lookup
        self._tag_names: Dict[str, str] = {}
        self.sealer = Sealer(
            keys,
            algorithm=algorithm,
            namespace=settings.namespace,
            tenant=settings.tenant,
            schema=schema,
            compress=settings.compress,
        )

    def name(self, encoded: bytes) -> str:
        return hmac.digest(self._lookup, encoded, "sha256").hex()

    def stamp(self, data: bytes) -> bytes:
        # No encoded key begins with a zero byte.
        return hmac.digest(self._lookup, b"\0stamp" + data, "sha256")[:16]

    def tag_name(self, tag: str) -> str:
        name = self._tag_names.get(tag)
        if name is None:
            if len(self._tag_names) >= _MOST_TAG_NAMES:
                self._tag_names.clear()
            name = self._tag_names[tag] = self.name(encode_key(["tag", tag])) + _TAG_SUFFIX
        return name


class Vault(Generic[V]):
    """The entries of one cache in its store.

    :param call: calls the backend's verbs; it may have a time budget and a circuit breaker.
    :param workers: threads for what would hold up the event loop.
    :param forget: called with the name of an entry that turned out to be of no use.
    :param discarded: called with the name and the reason when such an entry was deleted.
    :param clock: the time in seconds since 1970.

    ``parts`` are those of values that the store cannot hold in one entry.
    """

    def __init__(
        self,
        backend: Backend,
        codec: Codec[V],
        settings: CacheSettings,
        *,
        call: Call,
        workers: Workers,
        forget: Callable[[str], None],
        discarded: Callable[[str, str], None],
        clock: Clock,
    ) -> None:
        self._backend = backend
        self._codec = codec
        self._settings = settings
        self._call = call
        self._workers = workers
        self._forget = forget
        self._discarded = discarded
        self._clock = clock
        self._rings: List[_Ring] = []
        self._names: Dict[Union[str, bytes], Tuple[str, ...]] = {}
        self._known_bytes = 0
        # A store in this very process has nothing that a single journey would save.
        self._gathered: Optional[Coalescing] = None
        if backend.capabilities.shared_between_processes:
            self._gathered = Coalescing(backend, read=call, write=lambda verb: call(verb, STORE_FACTOR, writes=True))
        self._beginnings: SingleFlight[bytes] = SingleFlight()
        self.parts = Parts(backend, settings.max_bytes, call=call, sealer_of=self._sealer_of)

    def unlock(self, secrets: Secrets) -> None:
        """Take the secrets; nothing else works before."""
        self._rings = [_Ring(secret, self._settings, self._codec.schema) for secret in secrets.values]

    def names(self, key: KeyPart) -> Tuple[str, ...]:
        """Return what ``key`` is stored under: one name for each secret, the current one first.

        :raises InvalidKeyError: if the key cannot be encoded.
        """
        # Texts are known as they are, others by their spelling, for keys can be equal and yet differ, as 1 and True do.
        kind = type(key)
        if kind is str:
            spelt: Union[str, bytes, None] = key  # type: ignore[assignment]  # it is text
        elif kind is dict or kind is tuple:
            spelt = spelling(key)
        else:
            encoded = encode_key(key)
            return tuple([ring.name(encoded) for ring in self._rings])
        known = self._names.get(spelt) if spelt is not None and len(spelt) <= _LONGEST_KNOWN_KEY else None
        if known is None:
            encoded = encode_key(key)
            known = tuple([ring.name(encoded) for ring in self._rings])
            if spelt is not None and len(spelt) <= _LONGEST_KNOWN_KEY and is_plain(key):
                taken = sys.getsizeof(spelt) + _NAME_BYTES * len(known)
                self._known_bytes += taken
                if self._known_bytes > _MOST_KNOWN_BYTES:
                    self._names.clear()
                    self._known_bytes = taken
                self._names[spelt] = known
        return known

    def stamp(self, data: bytes) -> bytes:
        """Return 16 bytes that only an owner of the current secret can make for ``data``."""
        return self._rings[0].stamp(data)

    async def find(self, names: Sequence[str], tags: Sequence[str]) -> Tuple[Optional[Found[V]], Epochs]:
        """Return the entry under the first name that has one, and the epochs that ``tags`` have now, if they have.

        One bulk read, and a second one for tags of the entry that were not asked for. What is corrupt is deleted.

        :raises BackendUnavailableError: if the store is not available.
        """
        wanted = names
        if tags:
            wanted = [*names, *(ring.tag_name(tag) for tag in tags for ring in self._rings)]
        some = await self._get_many(wanted)
        read: _Read = {name: some.get(name) for name in wanted}
        self.parts.note(names, read)
        found = None
        for ring, name in zip(self._rings, names):
            entry = read[name]
            if entry is not None:
                found = await self._open_valid(ring, name, entry, read)
                if found is not None:
                    break
        epochs: Epochs = {}
        for tag in tags:
            record = read[self._rings[0].tag_name(tag)]
            if record is not None and len(record.value) == EPOCH_BYTES:
                epochs[tag] = record.value
        return found, epochs

    async def find_many(self, wanted: Sequence[Sequence[str]]) -> List[Union[Found[V], BackendUnavailableError, None]]:
        """Return what :meth:`find` returns or raises for each of several keys, given by their names. One bulk read.

        :raises BackendUnavailableError: if the store is not available, or for a part of them.
        """
        read: _Read = dict.fromkeys(name for names in wanted for name in names)
        read.update(await self._get_many(list(read)))
        results: List[Union[Found[V], BackendUnavailableError, None]] = []
        effort = 0
        for names in wanted:
            if effort >= _BREATH:
                await asyncio.sleep(0)
                effort = 0
            self.parts.note(names, read)
            result: Union[Found[V], BackendUnavailableError, None] = None
            for ring, name in zip(self._rings, names):
                entry = read[name]
                if entry is not None and result is None:
                    effort += _effort(entry.value)
                    try:
                        result = await self._open_valid(ring, name, entry, read)
                    except BackendUnavailableError as error:
                        result = error
            results.append(result)
        return results

    async def _open_valid(self, ring: _Ring, name: str, entry: Entry, read: _Read) -> Optional[Found[V]]:
        for _ in range(_LOOKS):
            try:
                sealed = entry.value
                if _is_short(sealed):
                    opened, value = self._decode(ring, name, sealed)
                else:
                    opened, value = await self._open(ring, name, entry, self._call)
                break
            except CorruptEntryError as error:
                gone = await self.discard(name, entry, str(error))
            except IncompleteEntryError as error:
                gone = await self._give_up(name, entry, error)
            if gone or not is_stand_in(entry.value):
                return None
            # Somebody has replaced it, and deleted the parts of what was read.
            again = await self._call(lambda: self._backend.get(name))
            if again is None:
                return None
            entry = again
        else:
            return None
        if opened.kept_until is not None and self._clock() >= opened.kept_until:
            return None
        tags: Tuple[str, ...] = ()
        if opened.labels:
            bound = unpack_epochs(opened.labels)
            unread = _unread(ring, bound, read)
            if unread:
                _add(read, unread, await self._get_many(unread))
            if _changed(ring, bound, read):
                return None
            tags = tuple(bound)
        return Found(name, opened, value, tags)

    def _get_many(self, names: Sequence[str]) -> Awaitable[Mapping[str, Entry]]:
        if self._gathered is not None:
            return self._gathered.get_many(names)
        return self._call(lambda: self._backend.get_many(names))

    async def ensure_epochs(self, tags: Iterable[str], known: Epochs) -> Epochs:
        """Return the epochs of the tags; those that are not known are made, unless somebody was faster.

        Who needs the same one at the same time, as all tasks of a batch into a new store do, has it made once.

        :raises BackendUnavailableError: if the store is not available.
        :raises EntryTooLargeError: if the store is too small for a record.
        """
        epochs: Epochs = {}
        for tag in tags:
            epoch = known.get(tag)
            if epoch is None:
                name = self._rings[0].tag_name(tag)
                if self._gathered is None:
                    epoch = await self._epoch(name)  # at once, so there is nobody to share it with
                else:
                    epoch, _ = await self._beginnings.run(name, self._begin_epoch)
            epochs[tag] = epoch
        return epochs

    async def settle(self) -> None:
        """Wait until what this event loop has begun for several callers is done."""
        await self._beginnings.settle()

    async def _begin_epoch(self, flight: Flight[bytes]) -> bytes:
        return await self._call(lambda: self._epoch(flight.key), STORE_FACTOR, writes=True)

    async def _epoch(self, name: str) -> bytes:
        while True:
            epoch = new_epoch()
            if await self._backend.add(name, epoch, ttl=self._backend.capabilities.max_ttl):
                return epoch
            record = await self._backend.get(name)
            if record is not None:
                if len(record.value) == EPOCH_BYTES:
                    return record.value
                await self._backend.delete(name, version=record.version)

    async def end_epochs(self, tags: Iterable[str]) -> int:
        """Invalidate all entries that have one of the tags.

        :returns: how many of the tags had a record.
        :raises BackendUnavailableError: if the store is not available; a part of the tags may be done.
        """
        ended = 0
        for tag in tags:
            for name in [ring.tag_name(tag) for ring in self._rings]:
                ended += await self._call(lambda: self._backend.delete(name), STORE_FACTOR, writes=True)  # noqa: B023 - awaited
        return ended

    async def seal(self, name: str, data: bytes, life: Life, epochs: Epochs) -> bytes:
        """Return an encoded value as it is stored under the current secret's name.

        :raises InvalidValueError: if it is above 256 MiB.
        """
        labels = pack_epochs(epochs) if epochs else b""
        if len(labels) + len(data) > MAX_LENGTH:
            raise InvalidValueError(f"a value of {len(data)} bytes is above {MAX_LENGTH}, the most that a cache stores")
        return await self._offload(len(data), lambda: self._rings[0].sealer.seal(name, data, life, labels))

    async def store(self, names: Sequence[str], sealed: bytes, ttl: Optional[float]) -> int:
        """Store under the current secret's name; what other secrets have for the key is out of date, and goes.

        But only what was there before: another process, in the middle of a rotation, may have the secrets the other
        way round, and each of the two would delete what the other has just stored.

        :returns: how many other entries had to go.
        :raises EntryTooLargeError: if it does not fit; the predecessor is gone.
        :raises BackendUnavailableError: if the store is not available.
        """
        limits = self.parts.limits
        parts: Dict[str, bytes] = {}
        outdated: List[str] = []
        evicted = 0
        try:
            if not limits.fits(names[0], sealed):
                manifest, parts = await self._offload(len(sealed), lambda: cut(names[0], sealed, limits))
                evicted = await self.parts.write(manifest, parts, ttl)
                sealed = self._rings[0].sealer.seal_stand_in(names[0], sealed, manifest.pack())
                self.parts.overlook(names)  # what was seen was seen long ago
            outdated = await self.parts.under(names)
            others = await self._get_many(names[1:]) if len(names) > 1 else {}
            evicted += await self._set(names[0], sealed, ttl)
        except (EntryTooLargeError, PartlyUnavailableError) as error:
            await self.parts.drop(parts)
            if isinstance(error, EntryTooLargeError):
                await self.parts.drop(outdated)
                for name in names:
                    await self.delete(name)
            raise
        for name in names[1:]:
            if name in others:
                version = others[name].version
                await self._call(
                    lambda: self._backend.delete(name, version=version),  # noqa: B023 - awaited here
                    STORE_FACTOR,
                    writes=True,
                )
        await self.parts.drop(outdated)
        return evicted

    async def _set(self, name: str, sealed: bytes, ttl: Optional[float]) -> int:
        if self._gathered is not None:
            return await self._gathered.set(name, sealed, ttl=ttl)
        return await self._call(lambda: self._backend.set(name, sealed, ttl=ttl), STORE_FACTOR, writes=True)

    async def delete(self, name: str) -> bool:
        """Delete whatever is under a name, with all its parts.

        :raises BackendUnavailableError: if the store is not available.
        """
        self.parts.overlook([name])
        parts = await self.parts.under([name])
        deleted = await self._call(lambda: self._backend.delete(name), STORE_FACTOR, writes=True)
        await self.parts.drop(parts)
        return deleted

    async def discard(self, name: str, entry: Entry, reason: str) -> bool:
        """Delete an entry that is of no use, but only the version that was seen; every cause ends here.

        :raises BackendUnavailableError: if the store is not available.
        """
        deleted = await self.remove(name, entry)
        if deleted:
            self._discarded(name, reason)
        return deleted

    async def _give_up(self, name: str, entry: Entry, error: IncompleteEntryError) -> bool:
        """Delete an entry that lost a part, which is no damage: a store that makes room takes parts as it likes.

        :returns: whether there is nothing more to look at.
        """
        # One that cannot be reached, on one of several servers, is not gone. A read of many leaves it out, this raises.
        found = await self._call(lambda: self._backend.get(error.missing[0]))
        if found is not None:
            return True  # reached again: a miss for once
        return await self.remove(name, entry)

    async def remove(self, name: str, entry: Entry) -> bool:
        """Delete an entry with its parts, but only the version that was seen.

        :raises BackendUnavailableError: if the store is not available.
        """
        self._forget(name)
        deleted = await self._call(lambda: self._backend.delete(name, version=entry.version), STORE_FACTOR, writes=True)
        await self.parts.drop(self.parts.named_in(name, entry.value))
        return deleted

    def _ring_of(self, sealed: bytes) -> Optional[_Ring]:
        key_id = key_id_of(sealed)
        return next((ring for ring in self._rings if ring.sealer.key_id == key_id), None)

    def _sealer_of(self, sealed: bytes) -> Optional[Sealer]:
        ring = self._ring_of(sealed)
        return None if ring is None else ring.sealer

    async def look_over(self, infos: Sequence[EntryInfo]) -> List[Tuple[StoredEntry[V], Entry]]:
        """Return those entries that are still there, opened, with what was read of each.

        :raises BackendUnavailableError: if the store is not available.
        """
        read: _Read = {}
        read.update(await self._backend.get_many([info.key for info in infos]))
        seen = []
        for info in infos:
            entry = read.get(info.key)
            if entry is not None:
                seen.append((await self._judge(info.key, entry, read), entry))
        return seen

    async def _judge(self, name: str, entry: Entry, read: _Read) -> StoredEntry[V]:
        size = len(name) + len(entry.value)
        if "." in name:
            return StoredEntry(name, size, "other")
        ring = self._ring_of(entry.value)
        if ring is None:
            return StoredEntry(name, size, "corrupt" if key_id_of(entry.value) is None else "foreign")
        try:
            opened, value = await self._open(ring, name, entry, _unguarded)
        except CorruptEntryError:
            return StoredEntry(name, size, "corrupt")
        except IncompleteEntryError:
            return StoredEntry(name, size, "incomplete")
        bound = unpack_epochs(opened.labels)
        unread = _unread(ring, bound, read)
        if unread:
            _add(read, unread, await self._backend.get_many(unread))
        manifest = self.parts.manifest(name, entry.value)
        if manifest is not None:
            size += manifest.size(name)
        state = "ok"
        changed = _changed(ring, bound, read)
        if changed:
            state = "invalidated"
        elif opened.expires_at is not None and self._clock() >= opened.expires_at:
            state = "stale"
        return StoredEntry(name, size, state, opened.created_at, opened.expires_at, value, tuple(bound), changed)

    async def _open(self, ring: _Ring, name: str, entry: Entry, call: Call) -> Tuple[Opened, V]:
        """Return what was sealed, after reading the parts that it may lie in.

        :raises CorruptEntryError: if it is not what was sealed.
        :raises IncompleteEntryError: if parts of it are gone.
        """
        sealed = entry.value
        if _is_short(sealed):
            return self._decode(ring, name, sealed)
        if not is_stand_in(sealed):
            return await self._workers.run(lambda: self._decode(ring, name, sealed))
        manifest, found = await self.parts.read(ring.sealer, name, sealed, call)
        return await self._offload(manifest.length, lambda: self._decode(ring, name, manifest.join(name, found)))

    def _decode(self, ring: _Ring, name: str, sealed: bytes) -> Tuple[Opened, V]:
        opened = ring.sealer.open(name, sealed)
        try:
            return opened, self._codec.decode(opened.value)
        except ValueError:
            raise CorruptEntryError(f"not in the encoding {self._codec.schema!r}") from None

    async def _offload(self, size: int, work: Callable[[], T]) -> T:
        return work() if size < OFFLOAD_FROM else await self._workers.run(work)


def _effort(sealed: bytes) -> int:
    return max(len(sealed), declared_length(sealed))


def _is_short(sealed: bytes) -> bool:
    """Return whether an entry has its value with it, and may be opened in the event loop."""
    return len(sealed) < OFFLOAD_FROM and declared_length(sealed) < OFFLOAD_FROM and not is_stand_in(sealed)


def _unread(ring: _Ring, bound: Epochs, read: _Read) -> List[str]:
    """Return the names of those records of the tags that were not read yet."""
    return [name for name in map(ring.tag_name, bound) if name not in read]


def _add(read: _Read, names: Iterable[str], found: Mapping[str, Entry]) -> None:
    read.update({name: found.get(name) for name in names})


def _changed(ring: _Ring, bound: Epochs, read: _Read) -> Tuple[str, ...]:
    """Return those of the tags whose epoch is another one now. Their records were read."""
    records = ((tag, epoch, read[ring.tag_name(tag)]) for tag, epoch in bound.items())
    return tuple(tag for tag, epoch, record in records if record is None or record.value != epoch)


async def _unguarded(
    verb: Callable[[], Awaitable[T]], factor: int = 1, *, writes: bool = False, counts: bool = True
) -> T:
    return await verb()
