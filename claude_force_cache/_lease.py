"""Leases: of all processes that share a store, one at a time makes the value of a key.

Who is about to make a value puts a record beside it, under ``<name>.lease``, which only one process can (``add``).
The others wait until the record is gone and look again. The record says who holds the lease and until when, and is
authenticated: what somebody else plants is removed, and what somebody keeps and puts back later has expired. A call
waits for two holders at most, so whoever can write to the store delays it by two lives of a lease at most.

A holder renews its lease every third of its life and removes it at the end, if it is still its own. One that dies
holds the others up until the lease has expired, or was not renewed for its whole life, whatever the clocks say.
Losing a lease costs one more call, nothing else. So whoever does not get one in time goes on without, and nobody waits
for long until it is given back: that is finished in the background.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import struct
import time
from typing import Awaitable, Callable, NamedTuple, Optional, Set, TypeVar, Union

from ._backend import Backend, Clock
from ._errors import BackendClosedError, BackendUnavailableError, EntryTooLargeError
from ._guard import Call

__all__ = ["Held", "Lease", "Leases"]

T = TypeVar("T")

_SUFFIX = ".lease"
_RECORD = struct.Struct(">16sQ")
"""Who holds the lease, and until when in milliseconds since the epoch. The stamp follows."""


class Held(NamedTuple):
    """A lease that another process has: by what it is known, what its record says, and until when that holds.

    The time is in seconds since 1970; over, if it is not sure who has the lease.
    """

    token: bytes
    record: bytes
    until: float


_NOBODYS = Held(b"", b"", 0.0)


class Lease:
    """The right to make one value, from when it was taken until :meth:`end`."""

    def __init__(self, leases: Leases, name: str) -> None:
        self.name = name
        self.token = os.urandom(16)
        self._leases = leases
        self._renewal: Optional[asyncio.Future[None]] = None

    def keep(self) -> None:
        """Renew it until it ends."""
        self._renewal = asyncio.ensure_future(self._leases.keep(self))

    async def end(self) -> None:
        """Renew it no more, and give it back."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])
        await self.release()

    async def release(self) -> None:
        """Remove the record, if it is still this holder's. Does not fail or wait for long: at worst it expires."""
        await self._leases.release(self)


class Leases:
    """The leases of one cache.

    :param seconds: how long a lease lives that is not renewed.
    :param patience: how many seconds whoever gives a lease back waits for that.
    :param call: calls the backend's verbs within the budget of a look-up.
    :param stamp: returns bytes that only an owner of the cache's secret can make.
    :param clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        seconds: float,
        patience: float,
        call: Call,
        stamp: Callable[[bytes], bytes],
        clock: Clock,
    ) -> None:
        self._backend = backend
        self._seconds = seconds
        self._patience = patience
        self._guarded = call
        self._stamp = stamp
        self._clock = clock
        self._unfinished: Set[asyncio.Future[None]] = set()

    async def take(self, name: str) -> Union[Lease, Held]:
        """Return the lease on making what is stored under ``name``, or which one another process has.

        :raises BackendUnavailableError: if the store is not available.
        :raises EntryTooLargeError: if the store is too small for a record.
        """
        lease = Lease(self, name + _SUFFIX)
        for _ in range(2):
            if await self._add(lease):
                return lease
            entry = await self._call(lambda: self._backend.get(lease.name))
            if entry is not None:
                held = self._held(lease.name, entry.value)
                if held.until > self._clock():
                    return held
                version = entry.version
                await self._call(lambda: self._backend.delete(lease.name, version=version), writes=True)  # noqa: B023 - awaited
        return _NOBODYS

    async def wait(self, name: str, held: Held) -> None:
        """Return when the lease that another process has is over, given back or somebody else's.

        One that was not renewed for its whole life, although its date is ahead, is removed: its holder is dead, and a
        clock was set back.

        :raises BackendUnavailableError: if the store is not available.
        """
        lease = name + _SUFFIX
        seen = time.monotonic()
        while held.until > self._clock():
            patience = seen + self._seconds - time.monotonic()
            await self._backend.wait(lease, timeout=max(0.0, min(held.until - self._clock(), patience)))
            entry = await self._call(lambda: self._backend.get(lease))
            found = _NOBODYS if entry is None else self._held(lease, entry.value)
            if entry is None or found.token != held.token:
                return
            if found.record != held.record:
                seen = time.monotonic()
            elif patience <= 0:
                version = entry.version
                await self._call(lambda: self._backend.delete(lease, version=version), writes=True)  # noqa: B023 - awaited
                return
            held = found

    async def keep(self, lease: Lease) -> None:
        """Renew a lease until it is lost; runs beside the call that it is for."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            try:
                entry = await self._call(lambda: self._backend.get(lease.name))
                if entry is None:
                    if not await self._add(lease):  # it may have been evicted
                        return
                elif entry.value.startswith(lease.token):
                    record = self._record(lease)
                    await self._call(lambda: self._backend.set(lease.name, record, ttl=self._seconds), writes=True)  # noqa: B023
                else:
                    return
            except (BackendUnavailableError, EntryTooLargeError):
                continue
            except BackendClosedError:
                return

    async def release(self, lease: Lease) -> None:
        """Remove the record of a lease, if it is still there; what takes longer goes on in the background."""
        await asyncio.wait([self._finish(self._release(lease))], timeout=self._patience)

    async def close(self) -> None:
        """Return when all that this event loop had begun is finished."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*[each for each in tuple(self._unfinished) if each.get_loop() is loop])

    def _finish(self, work: Awaitable[None]) -> asyncio.Future[None]:
        """Do something to its end, whoever is cancelled."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    async def _call(self, verb: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        # A store that is full may have room for a record.
        return await self._guarded(verb, writes=writes, counts=False)

    async def _release(self, lease: Lease) -> None:
        try:
            entry = await self._call(lambda: self._backend.get(lease.name))
            if entry is not None and entry.value.startswith(lease.token):
                version = entry.version
                await self._call(lambda: self._backend.delete(lease.name, version=version), writes=True)
        except (BackendUnavailableError, BackendClosedError):
            pass  # it expires

    async def _add(self, lease: Lease) -> bool:
        # A task of its own, since what is cancelled may still happen, in a thread or on its way to a server.
        adding = asyncio.ensure_future(
            self._call(
                lambda: self._backend.add(lease.name, self._record(lease), ttl=self._seconds),
                writes=True,
            )
        )
        try:
            return await asyncio.shield(adding)
        except asyncio.CancelledError:
            self._finish(self._give_back(adding, lease))
            raise

    async def _give_back(self, adding: asyncio.Future[bool], lease: Lease) -> None:
        await asyncio.wait([adding])
        if not adding.cancelled() and adding.exception() is None and adding.result():
            await self._release(lease)

    def _record(self, lease: Lease) -> bytes:
        record = _RECORD.pack(lease.token, int((self._clock() + self._seconds) * 1000))
        return record + self._stamp(lease.name.encode() + record)

    def _held(self, name: str, data: bytes) -> Held:
        """Return what a record says, if it is one of ours."""
        record = data[: _RECORD.size]
        if len(record) < _RECORD.size or not hmac.compare_digest(
            self._stamp(name.encode() + record), data[_RECORD.size :]
        ):
            return _NOBODYS
        token, until = _RECORD.unpack(record)
        return Held(token, record, min(float(until) / 1000, self._clock() + self._seconds))
