"""The cache: everything that must be the same on every store, above a backend."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import random
import time
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Generic,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from ._backend import Backend, Clock, Entry, EntryInfo, Usage
from ._capabilities import Capabilities
from ._codecs import Codec
from ._errors import BackendClosedError, BackendUnavailableError, EntryTooLargeError, InvalidValueError
from ._events import Events
from ._flight import Flight, SingleFlight
from ._guard import Guard
from ._keys import KeyPart, encode_key
from ._results import MISSING, CacheEntry, CacheStats, Missing, StoredEntry, VerifyReport
from ._sealing import AES, HMAC, MAX_LENGTH, CorruptEntryError, Opened, Sealer, declared_length, key_id_of
from ._secrets import Secrets, derive_keys
from ._threads import Workers
from ._tier import Tier

__all__ = ["Cache", "CacheSettings"]

V = TypeVar("V")
T = TypeVar("T")

_logger = logging.getLogger("claude_force_cache")

_STORE_FACTOR = 4
"""How many times the budget of a look-up a store may cost: it writes, and what it saves was paid for."""

_OFFLOAD_FROM = 1 << 17
"""Values of this many bytes and more are sealed and opened in a thread: they would hold up the event loop."""

_LONGEST_LIFE = 1000 * 365 * 86400.0
"""Seconds beyond which a ``ttl`` is no longer taken at its word: a thousand years, so that dates stay dates."""

_SCAN_BATCH = 64


def _effort(entry: Entry) -> int:
    return max(len(entry.value), declared_length(entry.value))


class _Default:
    """The type of the default of ``ttl`` arguments, since None means "for ever"."""

    def __repr__(self) -> str:
        return "<the cache's>"


_DEFAULT = _Default()
TTL = Union[None, float, _Default]

_Landed = Tuple[CacheEntry[V], Optional[bytes]]
"""What a flight brings: the entry, and where several wait for a value that can be changed, its encoding."""


@dataclass(frozen=True)
class CacheSettings:
    """The settings that every cache has, whatever its backend; see :data:`CORE_OPTIONS` for their meaning."""

    namespace: str
    tenant: str
    max_bytes: Optional[int]
    ttl: Optional[float]
    ttl_jitter: float
    encrypt: bool
    compress: bool
    tier_bytes: int
    tier_ttl: float
    timeout: float


class _Ring:
    """What one secret does for a cache: it names and seals entries."""

    def __init__(self, secret: bytes, settings: CacheSettings, schema: str) -> None:
        algorithm = AES if settings.encrypt else HMAC
        keys = derive_keys(secret, algorithm=algorithm, namespace=settings.namespace, tenant=settings.tenant)
        self._lookup = keys.lookup
        self.sealer = Sealer(
            keys,
            algorithm=algorithm,
            namespace=settings.namespace,
            tenant=settings.tenant,
            schema=schema,
            compress=settings.compress,
        )

    def key(self, encoded: bytes) -> str:
        return hmac.digest(self._lookup, encoded, "sha256").hex()


class Cache(Generic[V]):
    """A cache of values of one kind on one backend. Made by :func:`open_cache`.

    Reads and writes never fail for the store's sake: while it cannot be reached, reads are misses and writes
    are dropped, both counted in :meth:`stats`, and the log has one line. Verbs that are about the store itself
    (``usage``, ``scan``, ``verify``, ``delete``, ``clear``, ``ping``) do raise
    :class:`BackendUnavailableError`.

    Opens by itself at the first use; ``async with`` also closes. It may be used from several event loops.
    Keys are whole requests, see :data:`KeyPart`; a stored key is the keyed digest of one, 64 hex digits.

    Every verb raises :class:`BackendClosedError` after :meth:`close`, and the first one whatever
    :meth:`open` raises.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        url: str,
        codec: Codec[V],
        settings: CacheSettings,
        options: Mapping[str, Any],
        secrets: Optional[Secrets],
        clock: Clock = time.time,
    ) -> None:
        self.name = name
        self.url = url
        self.settings = settings
        self.options = options
        self._backend = backend
        self._codec = codec
        self._secrets = secrets
        self._clock = clock
        self._alone = not backend.capabilities.shared_between_processes
        self._rings: List[_Ring] = []
        self._tier = Tier(settings.tier_bytes, settings.tier_ttl) if settings.tier_bytes else None
        self._flight: SingleFlight[_Landed[V]] = SingleFlight()
        self._guard = Guard(url, self._probe, self._outage_changed)
        self._workers = Workers(2, "core")
        self._events = Events(url)
        self._counts: Dict[str, int] = dict.fromkeys((field.name for field in fields(CacheStats)), 0)
        self._warned_of_corruption = False
        self._opening: Optional[Future[None]] = None
        self._backend_open = False
        self._opened = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Cache {self.url} namespace={self.settings.namespace!r}>"

    @property
    def capabilities(self) -> Capabilities:
        """What the store cannot do; complete once the cache is open."""
        return self._backend.capabilities

    @property
    def secret_origin(self) -> Optional[str]:
        """Where the secret comes from, or None before the cache was opened without one."""
        return self._secrets.origin if self._secrets is not None else None

    async def __aenter__(self) -> Cache[V]:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Read the secret and open the store. Idempotent, and safe to call at the same time from anywhere.

        A store that cannot be reached is not an error: the cache goes on without it until it is back.

        :raises SecretError: if there is no secret and the store needs one, or its file cannot be used.
        :raises ForeignStoreError: if the store holds something else.
        """
        while not self._opened:
            if self._closed:
                raise BackendClosedError(f"cache {self.url} is closed: open another one")
            opening = self._opening
            if opening is not None:
                await asyncio.wrap_future(opening)
                continue
            opening = self._opening = Future()
            opening.set_running_or_notify_cancel()  # so that a caller who is cancelled cancels only its own waiting
            try:
                await self._open()
            except BaseException as error:
                self._opening = None
                if isinstance(error, Exception):
                    opening.set_exception(error)
                    opening.exception()
                else:
                    opening.set_result(None)  # not open: the next one tries
                raise
            self._opened = True
            opening.set_result(None)

    async def _open(self) -> None:
        if self._secrets is None:
            self._secrets = await self._workers.run(
                lambda: Secrets.for_store(self._backend.capabilities, os.environ, backend=self.name)
            )
        self._rings = [_Ring(secret, self.settings, self._codec.schema) for secret in self._secrets.values]
        try:
            await self._backend.open()
            self._backend_open = True
        except BackendUnavailableError as error:
            self._guard.failed(error, certain=True)

    async def close(self) -> None:
        """Finish the stores that are under way, then release everything. Entries stay in the store. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # A close that is cancelled, or that fails at one of these, still does the rest.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._workers.close)
            stack.push_async_callback(self._backend.close)
            stack.push_async_callback(self._guard.close)
            try:
                await self._flight.settle()
            finally:
                self._opened = False

    async def ping(self) -> None:
        """Return if the store answers.

        :raises BackendUnavailableError: if it does not, with the reason.
        """
        await self.open()
        await self._probe()

    async def get(self, key: KeyPart) -> Union[V, Missing]:
        """Return the value stored for ``key``, or :data:`MISSING`.

        Expired, corrupt and foreign entries are misses, and so is everything while the store is not available.

        :raises InvalidKeyError: if the key cannot be encoded.
        """
        entry = await self.get_entry(key)
        return MISSING if entry is None else entry.value

    async def get_entry(self, key: KeyPart) -> Optional[CacheEntry[V]]:
        """Return the same as :meth:`get` with its age and life, or None for a miss.

        :raises InvalidKeyError: if the key cannot be encoded.
        """
        if not self._opened:
            await self.open()
        names = self._names(key)
        entry = self._from_tier(names) or await self._from_backend(names)
        self._count("misses" if entry is None else "hits")
        if entry is None and self._events:
            self._events.emit("miss", key=names[0])
        return entry

    async def set(self, key: KeyPart, value: V, *, ttl: TTL = _DEFAULT) -> bool:
        """Store ``value`` for ``ttl`` seconds; without the argument for the cache's own, with None for ever.

        :returns: False if the store is not available; the value is then kept in the in-process tier only.
        :raises EntryTooLargeError: if it does not fit; an older value under the key is gone, others stay.
        :raises InvalidValueError: if the codec cannot encode it, or it is above 256 MiB.
        :raises InvalidKeyError: if the key cannot be encoded.
        :raises ValueError: if ``ttl`` is not above zero.
        """
        if not self._opened:
            await self.open()
        life = self._life(ttl)
        return await self._store(self._names(key), value, self._clock(), life)

    async def get_or_compute(
        self,
        key: KeyPart,
        compute: Callable[[], Awaitable[V]],
        *,
        ttl: TTL = _DEFAULT,
        store_if: Optional[Callable[[V], bool]] = None,
    ) -> V:
        """Return the stored value, or what ``compute`` returns, which is then stored; see :meth:`fetch`."""
        return (await self.fetch(key, compute, ttl=ttl, store_if=store_if)).value

    async def fetch(
        self,
        key: KeyPart,
        compute: Callable[[], Awaitable[V]],
        *,
        ttl: TTL = _DEFAULT,
        store_if: Optional[Callable[[V], bool]] = None,
        refresh: bool = False,
    ) -> CacheEntry[V]:
        """Return the stored entry, or compute it once for everybody in this event loop who asks meanwhile.

        ``compute`` runs in a task of its own. When one caller is cancelled, the others still get the value;
        when all are, so is ``compute``, but a value that is there already is stored first. When ``compute``
        fails, its error goes to the caller that started it; the others try once more, together.

        A value that cannot be stored is returned all the same.

        :param store_if: asked with the value; False means that it is returned but not stored.
        :param refresh: do not look, compute and store.
        :raises InvalidKeyError: if the key cannot be encoded.
        :raises ValueError: if ``ttl`` is not above zero.
        :raises Exception: what ``compute`` raises.
        """
        if not self._opened:
            await self.open()
        names = self._names(key)
        life = self._life(ttl)
        entry = None if refresh else self._from_tier(names)
        if entry is None and not refresh and self._alone:
            # Nothing is waited for in between, so no other caller can slip in.
            entry = await self._from_backend(names)
        if entry is not None:
            self._count("hits")
            return entry

        async def work(flight: Flight[_Landed[V]]) -> _Landed[V]:
            entry = None if refresh else await self._from_backend(names)
            if entry is None:
                value = await compute()
                flight.commit()
                now = self._clock()
                stored = store_if is None or store_if(value)
                if stored:
                    try:
                        await self._store(names, value, now, life)
                    except (EntryTooLargeError, InvalidValueError, BackendClosedError) as error:
                        _logger.warning("cache %s did not take an answer: %s", self.url, error)
                expires_at = now + life if stored and life is not None else None
                entry = CacheEntry(value, names[0], now, expires_at, 0.0, cached=False)
            return entry, self._shared(entry.value) if flight.depart() > 1 else None

        # A refresh shares its flight with other refreshes only: a reader may take what is stored.
        (entry, shared), led = await self._flight.run(f"refresh {names[0]}" if refresh else names[0], work)
        if not led:
            entry = replace(entry, value=entry.value if shared is None else self._codec.decode(shared), cached=True)
        self._count("hits" if entry.cached else "misses")
        if not entry.cached and self._events:
            self._events.emit("miss", key=names[0])
        return entry

    async def delete(self, key: KeyPart) -> bool:
        """Delete what is stored for ``key``, under every secret.

        :returns: True if there was something.
        :raises InvalidKeyError: if the key cannot be encoded.
        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        deleted = [await self.delete_stored(name) for name in self._names(key)]
        return any(deleted)

    async def delete_stored(self, key: str) -> bool:
        """Delete the entry under a stored key.

        :returns: True if there was one.
        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        try:
            return await self._guarded(lambda: self._backend.delete(key), _STORE_FACTOR)
        finally:
            if self._tier is not None:
                self._tier.discard(key)

    async def clear(self) -> int:
        """Delete every entry of this namespace, also those of other tenants and secrets; nothing else.

        :returns: how many there were.
        :raises BackendUnavailableError: if the store is not available; a part may be gone.
        """
        await self.open()
        try:
            await self._ensure_backend()
            return await self._backend.clear()
        finally:
            if self._tier is not None:
                self._tier.clear()

    async def usage(self) -> Usage:
        """Return the account of the namespace: live entries and the sum of their sizes in bytes.

        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        await self._ensure_backend()
        return await self._backend.usage()

    def stats(self) -> CacheStats:
        """Return what this cache object has done since it was made."""
        return CacheStats(**self._counts)

    def register(self, listener: object) -> None:
        """Add a listener to the events, see :class:`CacheEvents`.

        :raises ValueError: if it is registered already, or a hook of it does not fit.
        """
        self._events.register(listener)

    def unregister(self, listener: object) -> None:
        """Remove a listener.

        :raises ValueError: if it is not registered.
        """
        self._events.unregister(listener)

    async def scan(self) -> AsyncIterator[StoredEntry[V]]:
        """Iterate over the live entries of the namespace, opened, in no particular order. Counts as their use.

        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        await self._ensure_backend()
        batch: List[EntryInfo] = []
        async for info in self._backend.scan():
            batch.append(info)
            if len(batch) == _SCAN_BATCH:
                for stored, _ in await self._read_stored(batch):
                    yield stored
                batch = []
        for stored, _ in await self._read_stored(batch):
            yield stored

    async def get_stored(self, key: str) -> Optional[StoredEntry[V]]:
        """Return the entry under a stored key, or None if there is none.

        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        await self._ensure_backend()
        for stored, _ in await self._read_stored([EntryInfo(key, 0, None)]):
            return stored
        return None

    async def verify(self, *, repair: bool = False) -> VerifyReport:
        """Recount the account and open every entry. Counts as a use of all of them.

        With ``repair``, corrupt entries are deleted, unless a newer one has taken their place. Entries of
        other secrets cannot be judged; they are listed and stay. Entries that others write meanwhile can
        make the account differ from the count, so it is taken before and after, and counted again if it changed.

        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        await self._ensure_backend()
        report = await self._verify(repair)
        for _ in range(2):
            if report.consistent:
                break
            again = await self._verify(repair)
            report = replace(again, corrupt=report.corrupt + again.corrupt, repaired=report.repaired + again.repaired)
        return replace(report, corrupt=tuple(dict.fromkeys(report.corrupt)))

    async def _verify(self, repair: bool) -> VerifyReport:
        entries = size = repaired = 0
        corrupt: List[str] = []
        foreign: List[str] = []
        infos = [info async for info in self._backend.scan()]
        for start in range(0, len(infos), _SCAN_BATCH):
            batch = infos[start : start + _SCAN_BATCH]
            for stored, entry in await self._read_stored(batch):
                if stored.state == "foreign":
                    foreign.append(stored.key)
                elif stored.state == "corrupt":
                    corrupt.append(stored.key)
                    if repair and await self._discard(stored.key, entry, "found by verify"):
                        repaired += 1
                        continue
                entries += 1
                size += stored.size
        return VerifyReport(entries, size, await self._backend.usage(), tuple(corrupt), tuple(foreign), repaired)

    def _names(self, key: KeyPart) -> List[str]:
        """Return what ``key`` is stored under: one name for each secret, the current one first."""
        encoded = encode_key(key)
        return [ring.key(encoded) for ring in self._rings]

    def _life(self, ttl: TTL) -> Optional[float]:
        life = self.settings.ttl if isinstance(ttl, _Default) else ttl
        longest = self._backend.capabilities.max_ttl
        if life is not None:
            if not 0 < life < float("inf"):
                raise ValueError(f"ttl is {life!r}: expected a number of seconds above zero, or None for ever")
            life = min(life, _LONGEST_LIFE)
            life *= 1 - self.settings.ttl_jitter * random.random()  # noqa: S311 - spreads load, guards nothing
        return longest if life is None or (longest is not None and life > longest) else life

    def _from_tier(self, names: Sequence[str]) -> Optional[CacheEntry[V]]:
        if self._tier is None:
            return None
        now = self._clock()
        for name in names:
            found = self._tier.get(name, now)
            if found is not None:
                break
        else:
            return None
        self._counts["tier_hits"] += 1
        age = max(0.0, now - found.created_at)
        if self._events:
            self._events.emit("hit", key=name, age=age, tier=True)
        value = found.value if self._codec.immutable else self._codec.decode(found.value)
        return CacheEntry(value, name, found.created_at, found.expires_at, age, cached=True)

    def _shared(self, value: V) -> Optional[bytes]:
        """Return what each caller but one decodes to have a value of its own; None where all may have the same."""
        if self._codec.immutable:
            return None
        try:
            return self._codec.encode(value)
        except InvalidValueError:
            return None  # it is not stored either, and there is no other way to copy it

    def _keep(
        self,
        name: str,
        value: V,
        data: bytes,
        *,
        created_at: float,
        expires_at: Optional[float],
        now: float,
        read: Optional[int] = None,
    ) -> None:
        """Put a value into the tier: itself if it cannot be changed, else its encoding, if that is decoded quickly."""
        if self._tier is None:
            return
        if self._codec.immutable or len(data) < _OFFLOAD_FROM:
            kept = value if self._codec.immutable else data
            self._tier.put(
                name, kept, length=len(data), created_at=created_at, expires_at=expires_at, now=now, read=read
            )
        else:
            self._tier.discard(name)

    async def _from_backend(self, names: Sequence[str]) -> Optional[CacheEntry[V]]:
        read = None if self._tier is None else self._tier.generation
        try:
            if len(names) == 1:
                one = await self._guarded(lambda: self._backend.get(names[0]))
                found = {} if one is None else {names[0]: one}
            else:
                found = await self._guarded(lambda: self._backend.get_many(names))
            for ring, name in zip(self._rings, names):
                entry = found.get(name)
                hit = None if entry is None else await self._open_entry(ring, name, entry, read)
                if hit is not None:
                    return hit
        except BackendUnavailableError:
            self._counts["errors"] += 1
        return None

    async def _open_entry(self, ring: _Ring, name: str, entry: Entry, read: Optional[int]) -> Optional[CacheEntry[V]]:
        try:
            opened, value = await self._offload(_effort(entry), lambda: self._decode(ring, name, entry.value))
        except CorruptEntryError as error:
            await self._discard(name, entry, str(error))
            return None
        now = self._clock()
        if opened.expires_at is not None and now >= opened.expires_at:
            return None
        age = max(0.0, now - opened.created_at)
        self._keep(
            name, value, opened.value, created_at=opened.created_at, expires_at=opened.expires_at, now=now, read=read
        )
        if self._events:
            self._events.emit("hit", key=name, age=age, tier=False)
        return CacheEntry(value, name, opened.created_at, opened.expires_at, age, cached=True)

    def _decode(self, ring: _Ring, name: str, sealed: bytes) -> Tuple[Opened, V]:
        opened = ring.sealer.open(name, sealed)
        try:
            return opened, self._codec.decode(opened.value)
        except ValueError:
            raise CorruptEntryError(f"not in the encoding {self._codec.schema!r}") from None

    async def _discard(self, name: str, entry: Entry, reason: str) -> bool:
        """Delete an entry that is of no use, but only the version that was seen; every cause ends here."""
        if self._tier is not None:
            self._tier.discard(name)
        try:
            deleted = await self._guarded(lambda: self._backend.delete(name, version=entry.version), _STORE_FACTOR)
        except BackendUnavailableError:
            self._counts["errors"] += 1
            return False
        if deleted:
            self._counts["corrupt"] += 1
            level = logging.DEBUG if self._warned_of_corruption else logging.WARNING
            self._warned_of_corruption = True
            _logger.log(level, "cache %s had a corrupt entry, which was discarded: %s (%s)", self.url, name, reason)
            self._events.emit("corrupt", key=name, reason=reason)
        return deleted

    async def _store(self, names: Sequence[str], value: V, now: float, life: Optional[float]) -> bool:
        name = names[0]
        data = self._codec.encode(value)
        if len(data) > MAX_LENGTH:
            raise InvalidValueError(f"a value of {len(data)} bytes is above {MAX_LENGTH}, the most that a cache stores")
        expires_at = None if life is None else now + life
        try:
            sealed = await self._offload(
                len(data), lambda: self._rings[0].sealer.seal(name, data, created_at=now, expires_at=expires_at)
            )
            self._keep(name, value, data, created_at=now, expires_at=expires_at, now=now)
            evicted = await self._guarded(lambda: self._replace(names, sealed, life), _STORE_FACTOR)
        except EntryTooLargeError:
            self._counts["refused"] += 1
            if self._tier is not None:
                self._tier.discard(name)
            raise
        except BackendUnavailableError:
            self._counts["errors"] += 1
            return False
        finally:
            if self._tier is not None:
                self._tier.advance()
                for older in names[1:]:
                    self._tier.discard(older)
        self._counts["stores"] += 1
        self._counts["evictions"] += evicted
        if self._events:
            self._events.emit("store", key=name, size=len(name) + len(sealed))
            if evicted:
                self._events.emit("evict", count=evicted)
        return True

    async def _replace(self, names: Sequence[str], sealed: bytes, life: Optional[float]) -> int:
        """Store under the current secret's name; what older secrets have for the key is out of date."""
        evicted, refused = 0, None
        try:
            evicted = await self._backend.set(names[0], sealed, ttl=life)
        except EntryTooLargeError as error:
            refused = error
        for name in names[1:]:
            await self._backend.delete(name)
        if refused is not None:
            raise refused
        return evicted

    async def _read_stored(self, infos: Sequence[EntryInfo]) -> List[Tuple[StoredEntry[V], Entry]]:
        """Return the entries that are still there, opened, with what was read of each."""
        found = await self._backend.get_many([info.key for info in infos])
        return [
            (await self._offload(_effort(entry), lambda: self._judge(info.key, entry)), entry)  # noqa: B023 - awaited here
            for info in infos
            for entry in [found.get(info.key)]
            if entry is not None
        ]

    def _judge(self, name: str, entry: Entry) -> StoredEntry[V]:
        size = len(name) + len(entry.value)
        if "." in name:
            return StoredEntry(name, size, "other")
        key_id = key_id_of(entry.value)
        ring = next((ring for ring in self._rings if ring.sealer.key_id == key_id), None)
        if ring is None:
            return StoredEntry(name, size, "corrupt" if key_id is None else "foreign")
        try:
            opened, value = self._decode(ring, name, entry.value)
        except CorruptEntryError:
            return StoredEntry(name, size, "corrupt")
        return StoredEntry(name, size, "ok", opened.created_at, opened.expires_at, value)

    async def _offload(self, size: int, work: Callable[[], T]) -> T:
        return work() if size < _OFFLOAD_FROM else await self._workers.run(work)

    async def _guarded(self, verb: Callable[[], Awaitable[T]], factor: int = 1) -> T:
        if self._alone:
            return await verb()  # nothing outside this process that could be slow or gone
        return await self._guard.call(verb, self.settings.timeout * factor)

    async def _ensure_backend(self) -> None:
        """Raise what the store's outage was for, after asking it again, if it was given up."""
        if self._guard.outage is not None:
            await self._probe()

    async def _probe(self) -> None:
        if not self._backend_open:
            await self._backend.open()
            self._backend_open = True
        await self._backend.ping()

    def _outage_changed(self, error: Optional[BackendUnavailableError]) -> None:
        if error is None:
            self._events.emit("recovery")
        else:
            self._events.emit("outage", error=error)

    def _count(self, name: str) -> None:
        self._counts[name] += 1
