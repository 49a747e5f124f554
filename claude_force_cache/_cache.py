"""The cache: everything that must be the same on every store, above a backend."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from functools import partial
from types import TracebackType
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Generic,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from ._backend import Backend, Clock, EntryInfo, Usage
from ._capabilities import Capabilities
from ._chunks import entry_of
from ._codecs import Codec, JSONCodec, copied, copy_of
from ._errors import (
    BackendClosedError,
    BackendUnavailableError,
    EntryTooLargeError,
    InvalidValueError,
    PartlyUnavailableError,
)
from ._events import Events
from ._flight import Flight, SingleFlight
from ._guard import Guard
from ._keys import KeyPart
from ._lease import Held, Lease, Leases
from ._results import MISSING, CacheEntry, CacheStats, Missing, StoredEntry, VerifyReport
from ._sealing import Life
from ._secrets import Secrets
from ._settings import CacheSettings
from ._tags import Epochs, check_tags
from ._threads import Workers
from ._tier import Tier, TierEntry
from ._vault import OFFLOAD_FROM, Found, Vault

__all__ = ["Cache"]

V = TypeVar("V")
T = TypeVar("T")

_logger = logging.getLogger("claude_force_cache")

_LONGEST_LIFE = 1000 * 365 * 86400.0
"""Seconds beyond which a ``ttl`` is no longer taken at its word: a thousand years, so that dates stay dates."""

_SCAN_BATCH = 64

_BULK = 128
"""How many keys are read together at most: a bulk read has the budget of a single one."""

_UNCHANGEABLE = frozenset((str, bytes, int, float, bool, type(None)))

_NO_LEASE = (BackendUnavailableError, BackendClosedError, EntryTooLargeError)
"""Why there may be no lease: then the value is made without one, like what a closing cache still has to make."""

_WAITS = 2
"""How many other processes one waits for, one after the other, before it makes the value without a lease."""


class _Default:
    """The type of the default of ``ttl`` arguments, since None means "for ever"."""

    def __repr__(self) -> str:
        return "<the cache's>"


_DEFAULT = _Default()
TTL = Union[None, float, _Default]

_Landed = Tuple[CacheEntry[V], Optional[Callable[[], V]]]
"""What a flight brings: the entry, and where several wait for a value that can be changed, what makes another one."""


class _Demand(NamedTuple):
    """What one caller asks of a stored value; see :meth:`Cache.fetch`."""

    max_age: Optional[float] = None
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    stale_if: Optional[Callable[[Exception], bool]] = None
    usable_if: Optional[Callable[[Any], bool]] = None

    def overdue(self, created_at: float, expires_at: Optional[float], now: float) -> float:
        """Return for how many seconds a value is no longer fresh enough; below 0 while it is."""
        late = float("-inf") if expires_at is None else now - expires_at
        return late if self.max_age is None else max(late, now - created_at - self.max_age)

    def usable(self, value: Any) -> bool:
        return self.usable_if is None or self.usable_if(value)


_ANY = _Demand()


class _Bond(NamedTuple):
    """The tags of a value; their epochs and the number of invalidations here, from before it was made.

    The epochs are None if the store could not be asked then: what was invalidated since cannot be known.
    """

    tags: Tuple[str, ...]
    epochs: Optional[Epochs]
    invalidations: int


def _demand(
    max_age: Optional[float],
    stale_while_revalidate: float = 0.0,
    stale_if_error: float = 0.0,
    stale_if: Optional[Callable[[Exception], bool]] = None,
    usable_if: Optional[Callable[[Any], bool]] = None,
) -> _Demand:
    for name, seconds in (
        ("max_age", max_age),
        ("stale_while_revalidate", stale_while_revalidate),
        ("stale_if_error", stale_if_error),
    ):
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"{name} is {seconds!r}: expected a number of seconds, not below zero")
    return _Demand(max_age, stale_while_revalidate, stale_if_error, stale_if, usable_if)


class _Turn(Generic[V]):
    """One's turn to make a value: since when, what the store has (see :meth:`Cache._read`), and the lease."""

    __slots__ = ("began", "entry", "found", "lease")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.entry: Optional[CacheEntry[V]] = None
        self.found: Optional[Epochs] = None
        self.lease: Optional[Lease] = None


class _Work(Generic[V]):
    """How one caller makes a value, and how it is to be stored."""

    __slots__ = ("compute", "keep", "life", "store_if", "tags")

    def __init__(
        self,
        compute: Callable[[], Awaitable[V]],
        life: Optional[float],
        keep: float,
        tags: Tuple[str, ...],
        store_if: Optional[Callable[[V], bool]],
    ) -> None:
        self.compute = compute
        self.life = life
        self.keep = keep
        self.tags = tags
        self.store_if = store_if


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
        self._json = type(codec) is JSONCodec
        self._secrets = secrets
        self._clock = clock
        self._alone = not backend.capabilities.shared_between_processes
        self._tier = Tier(settings.tier_bytes, settings.tier_ttl) if settings.tier_bytes else None
        self._flight: SingleFlight[_Landed[V]] = SingleFlight()
        self._guard = Guard(url, self._probe, self._outage_changed, settings.timeout)
        self._workers = Workers(2, "core")
        self._vault: Vault[V] = Vault(
            backend,
            codec,
            settings,
            call=self._guarded,
            workers=self._workers,
            forget=self._forget,
            discarded=self._discarded,
            clock=clock,
        )
        self._leases: Optional[Leases] = None
        if settings.lease and not self._alone:
            self._leases = Leases(
                backend,
                seconds=settings.lease,
                patience=settings.timeout,
                call=self._guarded,
                stamp=self._vault.stamp,
                clock=clock,
            )
        self._invalidations = 0
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
    def codec(self) -> Codec[V]:
        """How values become bytes."""
        return self._codec

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
        self._vault.unlock(self._secrets)
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
            if self._leases is not None:
                stack.push_async_callback(self._leases.close)
            try:
                await self._flight.settle()
                await self._vault.settle()
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
        if not self._opened:
            await self.open()
        names = self._vault.names(key)
        if not self._events:  # a hit in the tier that nobody wants to hear of needs no entry around it
            found = self._in_tier(names)
            if found is not None:
                self._counts["tier_hits"] += 1
                self._counts["hits"] += 1
                return self._own(found)
            return await self._get_value(names)
        entry = await self._get_entry(names, _ANY)
        return MISSING if entry is None else entry.value

    async def _get_value(self, names: Sequence[str]) -> Union[V, Missing]:
        """Do what :meth:`_get_entry` does without a listener, and without the entry around the value."""
        read = None if self._tier is None else self._tier.generation
        try:
            found, _ = await self._vault.find(names, ())
        except BackendUnavailableError:
            self._counts["errors"] += 1
            found = None
        if found is None or not self._take_up(found, self._clock(), read):
            self._counts["misses"] += 1
            return MISSING
        self._counts["hits"] += 1
        return found.value

    async def get_many(self, keys: Sequence[KeyPart]) -> Dict[int, V]:
        """Return the values that are stored for ``keys``, each under the position of its key; misses are left out.

        Like :meth:`get` for one key after the other, in what is returned, verified, counted and told, but with one
        bulk read of the store for every 128 keys. Positions, because keys may be what no table takes as a key.
        Not atomic: what is stored or deleted meanwhile may be seen in part.

        :raises InvalidKeyError: if a key cannot be encoded.
        """
        if not self._opened:
            await self.open()
        values: Dict[int, V] = {}
        for start in range(0, len(keys), _BULK):
            if start:
                await asyncio.sleep(0)  # thousands of keys hold up nobody
            bulk = [self._vault.names(key) for key in keys[start : start + _BULK]]
            entries = await self._get_entries(bulk, _ANY, count_misses=True)
            for position, entry in enumerate(entries, start):
                if entry is not None:
                    values[position] = entry.value
        return values

    async def get_entries(
        self, keys: Sequence[KeyPart], *, max_age: Optional[float] = None
    ) -> List[Optional[CacheEntry[V]]]:
        """Return what :meth:`get_entry` returns for each of ``keys``, read in bulk as by :meth:`get_many`.

        Misses, which are None, are neither counted nor told: this is for looking many up before those that are missing
        are fetched, which counts them.

        :param max_age: an entry that is this many seconds old, or older, is a miss.
        :raises InvalidKeyError: if a key cannot be encoded.
        :raises ValueError: if ``max_age`` is below zero.
        """
        if not self._opened:
            await self.open()
        demand = _ANY if max_age is None else _demand(max_age)
        entries: List[Optional[CacheEntry[V]]] = []
        for start in range(0, len(keys), _BULK):
            if start:
                await asyncio.sleep(0)
            bulk = [self._vault.names(key) for key in keys[start : start + _BULK]]
            entries.extend(await self._get_entries(bulk, demand, count_misses=False))
        return entries

    async def _get_entries(
        self, bulk: Sequence[Sequence[str]], demand: _Demand, *, count_misses: bool
    ) -> List[Optional[CacheEntry[V]]]:
        entries = [self._from_tier(names, demand) for names in bulk]
        missing = [index for index, entry in enumerate(entries) if entry is None]
        if missing:
            read = None if self._tier is None else self._tier.generation
            try:
                found = await self._vault.find_many([bulk[index] for index in missing])
            except PartlyUnavailableError:  # each one's own question tells which
                for index in missing:
                    entries[index], _ = await self._read(bulk[index], (), demand)
            except BackendUnavailableError:
                self._counts["errors"] += len(missing)
            else:
                for index, result in zip(missing, found):
                    if isinstance(result, BackendUnavailableError):
                        self._counts["errors"] += 1
                    elif result is not None:
                        entries[index] = self._entry(result, demand, read)
        entries = [None if entry is None or entry.stale else entry for entry in entries]
        for names, entry in zip(bulk, entries):
            if entry is not None or count_misses:
                self._count("misses" if entry is None else "hits")
                if self._events:
                    self._tell(entry, names[0])
        return entries

    async def get_entry(
        self,
        key: KeyPart,
        *,
        max_age: Optional[float] = None,
        usable_if: Optional[Callable[[V], bool]] = None,
    ) -> Optional[CacheEntry[V]]:
        """Return the same as :meth:`get` with its age and life, or None for a miss.

        :param max_age: an entry that is this many seconds old, or older, is a miss.
        :param usable_if: asked with the value; False means that it is a miss for this caller.
        :raises InvalidKeyError: if the key cannot be encoded.
        :raises ValueError: if ``max_age`` is below zero.
        """
        if not self._opened:
            await self.open()
        demand = _ANY if max_age is None and usable_if is None else _demand(max_age, usable_if=usable_if)
        return await self._get_entry(self._vault.names(key), demand)

    async def _get_entry(self, names: Sequence[str], demand: _Demand) -> Optional[CacheEntry[V]]:
        entry = self._from_tier(names, demand)
        if entry is None:
            entry, _ = await self._read(names, (), demand)
            if entry is not None and entry.stale:
                entry = None
        self._count("misses" if entry is None else "hits")
        if self._events:
            self._tell(entry, names[0])
        return entry

    async def set(self, key: KeyPart, value: V, *, ttl: TTL = _DEFAULT, tags: Iterable[str] = ()) -> bool:
        """Store ``value`` for ``ttl`` seconds; without the argument for the cache's own, with None for ever.

        :param tags: see :meth:`invalidate`.
        :returns: False if the store is not available; the value is then kept in the in-process tier only.
        :raises EntryTooLargeError: if it does not fit; an older value under the key is gone, others stay.
        :raises InvalidValueError: if the codec cannot encode it, or it is above 256 MiB.
        :raises InvalidKeyError: if the key or a tag cannot be used.
        :raises ValueError: if ``ttl`` is not above zero.
        """
        if not self._opened:
            await self.open()
        life, stay = self._lasting(self._clock(), self._life(ttl), 0.0)
        bond = _Bond(check_tags(tags) if tags else (), {}, self._invalidations)
        names = self._vault.names(key)
        self._vault.parts.overlook(names)
        return await self._store(names, value, life, stay, bond)

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
        max_age: Optional[float] = None,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        stale_if: Optional[Callable[[Exception], bool]] = None,
        tags: Iterable[str] = (),
        store_if: Optional[Callable[[V], bool]] = None,
        usable_if: Optional[Callable[[V], bool]] = None,
        refresh: bool = False,
        refresh_ahead: float = 0.0,
    ) -> CacheEntry[V]:
        """Return the stored entry, or compute it once for everybody who asks meanwhile.

        That is everybody in this event loop; and, on a store that processes share, everybody in any of them, for
        the process that computes has a lease, which the others wait for (the cache's option ``lease``). One that
        dies holds them up until its lease expires. After two that brought nothing, each process computes its own.

        ``compute`` runs in a task of its own. When one caller is cancelled, the others still get the value;
        when all are, so is ``compute``, but a value that is there already is stored first. When ``compute``
        fails, its error goes to the caller that started it; the others try once more, together.

        A value that cannot be stored is returned all the same.

        :param ttl: the seconds that a new value is fresh, as for :meth:`set`.
        :param max_age: a stored value of this age in seconds is no longer fresh for this caller.
        :param stale_while_revalidate: for so many seconds after its freshness a stored value is still returned
            at once, marked :attr:`CacheEntry.stale`, while a new one is computed in the background, once.
            :meth:`close` waits for that. New values are kept in the store for as much longer.
        :param stale_if_error: for so many seconds after its freshness a stored value is returned, marked as
            stale, when ``compute`` fails. New values are kept for as much longer.
        :param stale_if: asked with the exception; False means that it is raised all the same.
        :param tags: what a new value can be invalidated by, see :meth:`invalidate`.
        :param store_if: asked with a new value; False means that it is returned but not stored.
        :param usable_if: asked with a value that somebody else made; False means that this caller needs its own.
        :param refresh: do not look, compute and store.
        :param refresh_ahead: the last share of a value's freshness, 0 to 1, in which it is returned while a new one
            is computed in the background, once for all processes that share the store. So a value that is in use
            is never late. :meth:`close` waits for that.
        :raises InvalidKeyError: if the key cannot be encoded, or, where a value has to be made, a tag cannot be used.
        :raises ValueError: if ``ttl`` is not above zero, likewise, or another number of seconds is below it, or
            ``refresh_ahead`` is not from 0 to 1.
        :raises Exception: what ``compute`` raises.
        """
        if not 0 <= refresh_ahead <= 1:
            raise ValueError(f"refresh_ahead is {refresh_ahead!r}: expected a share from 0 to 1")
        if not self._opened:
            await self.open()
        demand = _ANY
        if max_age is not None or usable_if is not None or stale_while_revalidate or stale_if_error:
            demand = _demand(max_age, stale_while_revalidate, stale_if_error, stale_if, usable_if)
        names = self._vault.names(key)
        entry = None if refresh else self._from_tier(names, demand)
        if entry is None or refresh_ahead:
            work = _Work(
                compute,
                self._life(ttl),
                max(stale_while_revalidate, stale_if_error),
                check_tags(tags) if tags else (),
                store_if,
            )
            if entry is None and self._alone and not refresh:
                # Nothing is waited for in between, so no other caller can slip in.
                entry, _ = await self._read(names, work.tags, demand)
            if entry is None or entry.stale:  # what to do with a stale one is decided in the flight
                entry = await self._fly(names, work, demand, refresh)
            if refresh_ahead and entry.cached and not entry.stale:
                self._renew(entry, refresh_ahead, names, work, demand)
        self._count("hits" if entry.cached else "misses")
        if entry.stale:
            self._count("stale")
        if self._events:
            self._tell(entry if entry.cached else None, entry.key)
        return entry

    async def _fly(self, names: Sequence[str], work: _Work[V], demand: _Demand, refresh: bool) -> CacheEntry[V]:
        """Return the entry that a flight brings, this caller's own or one that it may join."""
        if not refresh:
            found = await self._join(names[0], names, work, demand, looks=True)
            if found is not None:
                return found
        # A refresh shares its flight with other refreshes only: a reader may take what is stored.
        found = await self._join(f"refresh {names[0]}", names, work, demand, looks=False)
        while found is None:
            found = await self._join(f"only {names[0]} {id(work)}", names, work, demand, looks=False)
        return found

    async def _join(
        self, flight: str, names: Sequence[str], work: _Work[V], demand: _Demand, *, looks: bool
    ) -> Optional[CacheEntry[V]]:
        """Return what the flight brings, or None if it was another caller's and is not what this one needs."""
        (entry, again), led = await self._flight.run(
            flight, lambda own: self._work(own, names, work, demand, looks=looks)
        )
        if led:
            return entry
        value = entry.value if again is None else again()
        if not demand.usable(value):
            return None
        if entry.cached:
            late = demand.overdue(entry.created_at, entry.expires_at, self._clock())
            if late >= (max(0.0, demand.stale_while_revalidate) if looks else demand.stale_if_error):
                return None
            if looks:
                entry = entry._but(stale=late >= 0)
        return entry._but(value=value, cached=True)

    async def _work(
        self, flight: Flight[_Landed[V]], names: Sequence[str], work: _Work[V], demand: _Demand, *, looks: bool
    ) -> _Landed[V]:
        """Do what a flight is for: look, and if nothing serves, compute and store."""
        invalidations = self._invalidations
        found: Optional[Epochs] = {}
        entry: Optional[CacheEntry[V]] = None
        turn: _Turn[V] = _Turn()
        try:
            if not looks:
                self._vault.parts.overlook(names)
            else:
                entry, found = await self._read(names, work.tags, demand)
                if found is not None and self._leases is not None and not self._serves(entry, demand):
                    turn.entry, turn.found = entry, found
                    await self._take_turn(turn, self._leases, names, work, demand)
                    if turn.lease is not None:
                        turn.lease.keep()
                    entry, found = turn.entry, turn.found
            if entry is None or not self._serves(entry, demand):
                entry = await self._make(
                    flight, names, work, demand, entry=entry, found=found, invalidations=invalidations
                )
            elif entry.stale:
                again = demand._replace(stale_if_error=0.0)
                self._flight.start(f"refresh {names[0]}", lambda other: self._refresh(other, names, work, again))
        finally:
            if turn.lease is not None:
                await turn.lease.end()
        return entry, self._shared(entry.value) if flight.depart() > 1 else None

    async def _take_turn(
        self, turn: _Turn[V], leases: Leases, names: Sequence[str], work: _Work[V], demand: _Demand
    ) -> None:
        """Wait for other processes that make the value, and look again; take the lease if it is one's turn.

        Whoever does not get it within what a look-up may cost, since ``turn.began``, goes on without.
        """
        for _ in range(_WAITS):
            remaining = turn.began + self.settings.timeout - time.monotonic()
            if remaining <= 0:
                return
            try:
                other = await self._guard.call(
                    lambda: self._try_turn(turn, leases, names, work, demand), remaining, counts=False
                )
            except _NO_LEASE:
                return
            if other is None:
                return
            waited = self._clock()
            self._counts["lease_waits"] += 1
            try:
                await leases.wait(names[0], other)
            except _NO_LEASE:
                return
            turn.began = time.monotonic()
            turn.entry, turn.found = await self._read(names, work.tags, demand)
            serves = self._serves(turn.entry, demand)
            if self._events:
                self._events.emit("lease", key=names[0], waited=self._clock() - waited, found=serves)
            if serves or turn.found is None:
                return

    async def _try_turn(
        self, turn: _Turn[V], leases: Leases, names: Sequence[str], work: _Work[V], demand: _Demand
    ) -> Optional[Held]:
        """Take the lease and look again, or return which one another process has."""
        lease = await leases.take(names[0])
        if not isinstance(lease, Lease):
            return lease
        turn.lease = lease
        # Another process may have given it back since this one looked.
        turn.entry, turn.found = await self._read(names, work.tags, demand)
        return None

    async def _make(
        self,
        flight: Flight[_Landed[V]],
        names: Sequence[str],
        work: _Work[V],
        demand: _Demand,
        *,
        entry: Optional[CacheEntry[V]],
        found: Optional[Epochs],
        invalidations: int,
    ) -> CacheEntry[V]:
        """Return the entry of a new value, or an old one that may stand in for it if it cannot be made."""
        epochs: Optional[Epochs] = found if work.tags else {}
        if work.tags and found is not None:
            # Before the value is made: what is invalidated from now on does not hold what comes of it.
            try:
                epochs = await self._vault.ensure_epochs(work.tags, found)
            except BackendUnavailableError:
                epochs = None
            except EntryTooLargeError:
                pass  # the store finds out, and says so
        try:
            value = await work.compute()
        except Exception as error:
            stand_in = await self._after_error(entry, names, demand, error)
            if stand_in is None:
                raise
            return stand_in
        flight.commit()
        return await self._keep_new(names, value, work, _Bond(work.tags, epochs, invalidations))

    def _renew(self, entry: CacheEntry[V], share: float, names: Sequence[str], work: _Work[V], demand: _Demand) -> None:
        """Begin to make a value anew that is fresh, and in the last share of its freshness."""
        age = self._clock() - entry.created_at
        life = float("inf") if entry.expires_at is None else entry.expires_at - entry.created_at
        life = life if demand.max_age is None else min(life, demand.max_age)
        if life < float("inf") and age >= life * (1 - share):
            # From this age on, a value counts as late for whoever makes the next one.
            late = demand._replace(max_age=age, stale_if_error=0.0)
            self._flight.start(f"refresh {names[0]}", lambda flight: self._refresh(flight, names, work, late))

    async def _refresh(
        self, flight: Flight[_Landed[V]], names: Sequence[str], work: _Work[V], demand: _Demand
    ) -> _Landed[V]:
        try:
            return await self._work_in_turn(flight, names, work, demand)
        except Exception as error:
            _logger.info("cache %s serves an old value, which could not be made anew: %s", self.url, error)
            raise

    async def _work_in_turn(
        self, flight: Flight[_Landed[V]], names: Sequence[str], work: _Work[V], demand: _Demand
    ) -> _Landed[V]:
        """Make a value anew, unless another process does or has just done so."""
        if self._leases is None:
            return await self._work(flight, names, work, demand, looks=False)
        try:
            lease = await self._leases.take(names[0])
        except _NO_LEASE:
            return await self._work(flight, names, work, demand, looks=False)
        if isinstance(lease, Lease):
            lease.keep()
        try:
            entry, _ = await self._read(names, (), demand)
            if entry is None or (isinstance(lease, Lease) and entry.stale):
                return await self._work(flight, names, work, demand, looks=False)
        finally:
            if isinstance(lease, Lease):
                await lease.end()
        return entry, self._shared(entry.value) if flight.depart() > 1 else None

    async def _after_error(
        self, entry: Optional[CacheEntry[V]], names: Sequence[str], demand: _Demand, error: Exception
    ) -> Optional[CacheEntry[V]]:
        """Return the old entry that stands in for a value that could not be made, if there may be one."""
        if not demand.stale_if_error or (demand.stale_if is not None and not demand.stale_if(error)):
            return None
        if entry is None:
            entry, _ = await self._read(names, (), demand)
        if entry is None:
            return None
        late = demand.overdue(entry.created_at, entry.expires_at, self._clock())
        return entry._but(stale=True) if late < demand.stale_if_error else None

    async def _keep_new(self, names: Sequence[str], value: V, work: _Work[V], bond: _Bond) -> CacheEntry[V]:
        """Return the entry of a value that was just made, stored if that is possible."""
        now = self._clock()
        stored = work.store_if is None or work.store_if(value)
        if stored:
            life, stay = self._lasting(now, work.life, work.keep)
            try:
                await self._store(names, value, life, stay, bond)
            except (EntryTooLargeError, InvalidValueError, BackendClosedError) as error:
                _logger.warning("cache %s did not take an answer: %s", self.url, error)
        expires_at = now + work.life if stored and work.life is not None else None
        return CacheEntry(value, names[0], now, expires_at, 0.0, cached=False, tags=work.tags if stored else ())

    def _serves(self, entry: Optional[CacheEntry[V]], demand: _Demand) -> bool:
        """Return whether there is a stored entry that a caller may have at once."""
        if entry is None or not entry.stale:
            return entry is not None
        return demand.overdue(entry.created_at, entry.expires_at, self._clock()) < demand.stale_while_revalidate

    async def invalidate(self, *tags: str) -> int:
        """Make every entry that was stored with one of the tags a miss, in this process and in all others.

        One deletion for each tag, however many entries have it. They stay in the store, and in its account,
        until they expire, are replaced or make room. Another process's in-process tier follows within its
        ``tier_ttl``. Values that are being computed now count as made before.

        :returns: how many of the tags were in use.
        :raises InvalidKeyError: if a tag cannot be used.
        :raises ValueError: if there is none.
        :raises BackendUnavailableError: if the store is not available; a part of the tags may be done.
        """
        checked = check_tags(tags)
        if not checked:
            raise ValueError("invalidate needs at least one tag; clear deletes everything")
        await self.open()
        try:
            ended = await self._vault.end_epochs(checked)
        finally:
            self._invalidations += 1
            if self._tier is not None:
                self._tier.clear()
        if self._events:
            self._events.emit("invalidate", tags=checked)
        return ended

    async def stored_key(self, key: KeyPart) -> str:
        """Return what ``key`` is stored under: 64 hex digits, a digest that only the owner of the secret can make.

        :raises InvalidKeyError: if the key cannot be encoded.
        """
        await self.open()
        return self._vault.names(key)[0]

    async def delete(self, key: KeyPart) -> bool:
        """Delete what is stored for ``key``, under every secret.

        :returns: True if there was something.
        :raises InvalidKeyError: if the key cannot be encoded.
        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        deleted = [await self.delete_stored(name) for name in self._vault.names(key)]
        return any(deleted)

    async def delete_stored(self, key: str) -> bool:
        """Delete the entry under a stored key.

        :returns: True if there was one.
        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        try:
            return await self._vault.delete(key)
        finally:
            self._forget(key)

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
            if entry_of(info.key) is not None:
                yield StoredEntry(info.key, info.size, "other")
                continue
            batch.append(info)
            if len(batch) == _SCAN_BATCH:
                for stored, _ in await self._vault.look_over(batch):
                    yield stored
                batch = []
        for stored, _ in await self._vault.look_over(batch):
            yield stored

    async def get_stored(self, key: str) -> Optional[StoredEntry[V]]:
        """Return the entry under a stored key, or None if there is none.

        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        await self._ensure_backend()
        for stored, _ in await self._vault.look_over([EntryInfo(key, 0, None)]):
            return stored
        return None

    async def verify(self, *, repair: bool = False) -> VerifyReport:
        """Recount the account and open every entry. Counts as a use of all of them.

        With ``repair``, corrupt entries are deleted, unless a newer one has taken their place, and what remains
        of entries that lost a part or were not written to their end. A value that is written in parts meanwhile
        may be lost by that. Entries of other secrets cannot be judged; they are listed and stay. Entries that
        others write meanwhile can make the account differ from the count, so it is taken before and after, and
        counted again if it changed.

        :raises BackendUnavailableError: if the store is not available.
        """
        await self.open()
        await self._ensure_backend()
        report = await self._verify(repair)
        for _ in range(2):
            if report.consistent:
                break
            again = await self._verify(repair)
            report = replace(
                again,
                corrupt=tuple(dict.fromkeys(report.corrupt + again.corrupt)),
                repaired=report.repaired + again.repaired,
                remains=tuple(dict.fromkeys(report.remains + again.remains)),
            )
        return report

    async def _verify(self, repair: bool) -> VerifyReport:
        entries = size = repaired = 0
        corrupt: List[str] = []
        foreign: List[str] = []
        incomplete: List[str] = []
        parts: Dict[str, int] = {}
        infos: List[EntryInfo] = []
        async for info in self._backend.scan():
            if entry_of(info.key) is None:
                infos.append(info)
            else:
                parts[info.key] = info.size
        for start in range(0, len(infos), _SCAN_BATCH):
            batch = infos[start : start + _SCAN_BATCH]
            for stored, entry in await self._vault.look_over(batch):
                entries += 1
                size += len(stored.key) + len(entry.value)
                if stored.state == "foreign":
                    foreign.append(stored.key)
                elif stored.state == "incomplete":
                    incomplete.append(stored.key)
                    if repair:
                        await self._vault.remove(stored.key, entry)
                elif stored.state == "corrupt":
                    corrupt.append(stored.key)
                    if repair and await self._vault.discard(stored.key, entry, "found by verify"):
                        entries -= 1
                        size -= len(stored.key) + len(entry.value)
                        repaired += 1
        orphans = await self._vault.parts.orphans(parts)
        if repair:
            for name in orphans:
                await self._vault.delete(name)
        return VerifyReport(
            entries + len(parts),
            size + sum(parts.values()),
            await self._backend.usage(),
            tuple(corrupt),
            tuple(foreign),
            repaired,
            (*incomplete, *orphans),
        )

    def _life(self, ttl: TTL) -> Optional[float]:
        life = self.settings.ttl if isinstance(ttl, _Default) else ttl
        longest = self._backend.capabilities.max_ttl
        if life is not None:
            if not 0 < life < float("inf"):
                raise ValueError(f"ttl is {life!r}: expected a number of seconds above zero, or None for ever")
            life = min(life, _LONGEST_LIFE)
            life *= 1 - self.settings.ttl_jitter * random.random()  # noqa: S311 - spreads load, guards nothing
        return longest if life is None or (longest is not None and life > longest) else life

    def _lasting(self, now: float, life: Optional[float], keep: float) -> Tuple[Life, Optional[float]]:
        """Return the dates of a value that is fresh for ``life`` seconds and kept ``keep`` longer, and the sum of both.

        The sum is what a store is told. The difference of two dates may be a little more, which a store rounds up.
        """
        if life is None:
            return Life(now, None, None), None
        longest = self._backend.capabilities.max_ttl
        kept = life + keep if longest is None else min(life + keep, longest)
        return Life(now, now + life, now + kept), kept

    def _in_tier(self, names: Sequence[str]) -> Optional[TierEntry]:
        if self._tier is None:
            return None
        now = self._clock()
        for name in names:
            found = self._tier.get(name, now)
            if found is not None:
                return found
        return None

    def _own(self, found: TierEntry) -> V:
        """Return the value of an entry of the tier, as one that the caller may change if it can be changed."""
        value: V = found.value
        make = found.make
        if make is None:
            return value
        value = make(found.value)
        if make is not copied and self._json and self._tier is not None:
            data = copy_of(value)  # for those who come again
            if data is not None:
                self._tier.exchange(found, data, copied)
        return value

    def _from_tier(self, names: Sequence[str], demand: _Demand) -> Optional[CacheEntry[V]]:
        found = self._in_tier(names)
        if found is None:
            return None
        age = max(0.0, self._clock() - found.created_at)
        value = self._own(found)
        if demand is not _ANY and ((demand.max_age is not None and age >= demand.max_age) or not demand.usable(value)):
            return None
        self._counts["tier_hits"] += 1
        return CacheEntry(value, found.name, found.created_at, found.expires_at, age, cached=True, tier=True)

    def _unchangeable(self, value: V) -> bool:
        """Return whether callers may share a value, since none of them can change it."""
        return self._codec.immutable or type(value) in _UNCHANGEABLE

    def _shared(self, value: V) -> Optional[Callable[[], V]]:
        """Return what makes each caller but one a value of its own; None where all may have the same."""
        if self._unchangeable(value):
            return None
        try:
            encoded = self._codec.encode(value)
        except InvalidValueError:
            return None  # it is not stored either, and there is no other way to copy it
        data = copy_of(self._codec.decode(encoded)) if self._json else None
        return partial(self._codec.decode, encoded) if data is None else partial(copied, data)

    def _keep(self, name: str, value: V, data: bytes, life: Life, *, now: float, read: Optional[int] = None) -> None:
        """Put a value into the tier: itself if it cannot be changed, else its encoding, if that is decoded quickly."""
        if self._tier is None:
            return
        make = None if self._unchangeable(value) else self._codec.decode
        if make is None or len(data) < OFFLOAD_FROM:
            self._tier.put(
                name,
                value if make is None else data,
                make=make,
                length=len(data),
                created_at=life.created_at,
                expires_at=life.expires_at,
                now=now,
                read=read,
            )
        else:
            self._tier.discard(name)

    async def _read(
        self, names: Sequence[str], tags: Sequence[str], demand: _Demand
    ) -> Tuple[Optional[CacheEntry[V]], Optional[Epochs]]:
        """Return what the store has and the caller can use, fresh or marked as stale, and the epochs of the tags.

        The epochs are None if the store is not available.
        """
        read = None if self._tier is None else self._tier.generation
        try:
            found, epochs = await self._vault.find(names, tags)
        except BackendUnavailableError:
            self._counts["errors"] += 1
            return None, None
        if found is None or not demand.usable(found.value):
            return None, epochs
        return self._entry(found, demand, read), epochs

    def _entry(self, found: Found[V], demand: _Demand, read: Optional[int]) -> CacheEntry[V]:
        """Return what was found as callers get it, and keep it in the tier."""
        now = self._clock()
        age = max(0.0, now - found.created_at)
        self._take_up(found, now, read)
        stale = demand.overdue(found.created_at, found.expires_at, now) >= 0
        return CacheEntry(
            found.value, found.name, found.created_at, found.expires_at, age, cached=True, stale=stale, tags=found.tags
        )

    def _take_up(self, found: Found[V], now: float, read: Optional[int]) -> bool:
        """Return whether what was found is fresh, and then keep it in the tier; see :meth:`Tier.put` about ``read``."""
        if found.expires_at is not None and now >= found.expires_at:
            return False
        if self._tier is not None:
            life = Life(found.created_at, found.expires_at, None)
            self._keep(found.name, found.value, found.data, life, now=now, read=read)
        return True

    def _forget(self, name: str) -> None:
        if self._tier is not None:
            self._tier.discard(name)

    def _discarded(self, name: str, reason: str) -> None:
        self._counts["corrupt"] += 1
        level = logging.DEBUG if self._warned_of_corruption else logging.WARNING
        self._warned_of_corruption = True
        _logger.log(level, "cache %s had a corrupt entry, which was discarded: %s (%s)", self.url, name, reason)
        self._events.emit("corrupt", key=name, reason=reason)

    def _tell(self, entry: Optional[CacheEntry[V]], name: str) -> None:
        if entry is None:
            self._events.emit("miss", key=name)
        else:
            self._events.emit("hit", key=entry.key, age=entry.age, tier=entry.tier, stale=entry.stale)

    async def _store(
        self,
        names: Sequence[str],
        value: V,
        life: Life,
        stay: Optional[float],
        bond: _Bond,
    ) -> bool:
        """Store a value under its current name, for ``stay`` seconds."""
        name = names[0]
        data = self._codec.encode(value)
        try:
            if bond.invalidations == self._invalidations or not bond.tags:
                self._keep(name, value, data, life, now=life.created_at)
            if bond.epochs is None:
                return self._not_stored(name)
            epochs = await self._vault.ensure_epochs(bond.tags, bond.epochs) if bond.tags else {}
            sealed = await self._vault.seal(name, data, life, epochs)
            evicted = await self._vault.store(names, sealed, stay)
        except (EntryTooLargeError, InvalidValueError):
            self._forget(name)
            self._counts["refused"] += 1
            raise
        except BackendUnavailableError:
            return self._not_stored(name)
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

    def _guarded(
        self, verb: Callable[[], Awaitable[T]], factor: int = 1, *, writes: bool = False, counts: bool = True
    ) -> Awaitable[T]:
        if self._alone:
            return verb()  # nothing outside this process that could be slow or gone
        return self._guard.call(verb, self.settings.timeout * factor, writes=writes, counts=counts)

    async def _ensure_backend(self) -> None:
        """Raise what the store's outage was for, after asking it again, if it was given up."""
        if self._guard.outage is not None:
            await self._probe()

    async def _probe(self) -> None:
        if not self._backend_open:
            await self._backend.open()
            self._backend_open = True
        await self._backend.ping()

    def _not_stored(self, name: str) -> bool:
        self._counts["errors"] += 1
        if self._tier is not None:
            self._tier.leave_alone(name)
        return False

    def _outage_changed(self, error: Optional[BackendUnavailableError]) -> None:
        if self._tier is not None:
            self._tier.away_until(self._clock() if error is None else float("inf"))
        if error is None:
            self._events.emit("recovery")
        else:
            self._events.emit("outage", error=error)

    def _count(self, name: str) -> None:
        self._counts[name] += 1
