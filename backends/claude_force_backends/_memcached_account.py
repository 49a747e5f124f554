"""The limit of a namespace on one Memcached server, held without looking at every item on every write.

The server itself is the truth: a survey of its items tells exactly what is live, and costs time. A counter on
the server decides when a survey is due. It holds an epoch and an upper bound of the live bytes:

1. A writer first adds its entry's size to the counter (one atomic ``incr`` returns epoch and sum). Above the
   limit it takes that back and makes room. Otherwise it writes, then reads the epoch again: unchanged, done.
   Changed, a recount may have run before the entry was there and have dropped the reservation: it reserves
   again in the new epoch.
2. A recount, one at a time by a lock that expires, first moves the counter to a new epoch and to the limit,
   so that no writer passes meanwhile. It surveys, evicts if need be (each victim only if it was not written
   since), and lowers the counter to what is left plus what was reserved in its epoch, by ``cas``. If the epoch
   is no longer its own, it starts over: another recount overtook it, or the counter was lost.
3. A reservation is taken back only by ``cas`` in the epoch in which it was made, where the counter is known to
   contain it.

So at rest the counter is never below the live bytes: whoever wrote reserved in an epoch that no recount ended
before the write was visible to a survey. Crashes leave reservations without an entry, which the next recount
removes, or a counter at the limit, which makes the next writer recount. A server that restarts or evicts the
counter makes it missing, and so does ``clear``; the next writer recounts. One thing is left: a writer that dies
between its write and its second look, while a recount runs, leaves its entry out of the counter until the next
recount; usage, which always surveys, brings the namespace within the limit before it answers. Deletes and
expiries are not taken off the counter; recounts find them.
"""

from __future__ import annotations

import heapq
import random
import secrets
import threading
import time
from typing import Iterable, List, NamedTuple, Optional, Tuple

from claude_force_cache import BackendUnavailableError

from ._memcached_server import Item, Server

__all__ = ["Account", "Room"]

_SHIFT = 40
# The counter stays below 2**63. In a greater number servers up to 1.6 look for a minus sign, beyond its end, and take
# a hyphen in whatever lies behind it in memory for one: "cannot increment or decrement non-numeric value".
_EPOCHS = 1 << 23
# Far above what a server can hold, far enough below the next epoch for sums that are taken back.
_HIGHEST_LIMIT = 1 << (_SHIFT - 1)
# How long whoever died while making room holds up the others. A recount that takes longer is overtaken.
_LOCK_SECONDS = 2
_POLL_SECONDS = 0.005


class Room(NamedTuple):
    """A reservation: the epoch in which it was made, and how many entries were evicted for it."""

    epoch: int
    evicted: int


class Account:
    """Reservations in one namespace of one server.

    :param prefix: what the names of the namespace start with.
    :param overhead: the bytes of a stored value that do not count.
    :param limit: the limit in bytes.
    :param slack: the share of the limit that an eviction may free beyond what is needed.
    """

    def __init__(self, server: Server, prefix: str, overhead: int, limit: int, slack: float) -> None:
        self._server = server
        self._prefix = prefix
        self._overhead = overhead
        self.limit = min(limit, _HIGHEST_LIMIT)
        self._slack = int(limit * slack)
        self._counter = prefix + "!account"
        self._lock = prefix + "!lock"
        self._one_at_a_time = threading.Lock()

    def open(self) -> None:
        """Bring the namespace within the limit, if the counter does not vouch for it."""
        value = _number(self._server.call("get", self._counter))
        if value is None or _used(value) > self.limit:
            self.make_room("", 0)

    def store(self, name: str, blob: bytes, expire: int, *, only_if_absent: bool) -> Optional[int]:
        """Make room for a value and store it; return how many other entries were evicted.

        :returns: None if ``only_if_absent`` and there is one.
        """
        size = self._size(name, len(blob))
        room = self.reserve(size)
        if room is None and not only_if_absent:
            room = self._overwrite(name, blob, expire)
            if room is not None:
                return self.settle(room, name, size)
        room = room or self.make_room(name, size)
        verb = "add" if only_if_absent else "set"
        if not self._server.call(verb, name, blob, expire=expire, repeatable=not only_if_absent):
            self.release(room.epoch, size)
            return None
        return self.settle(room, name, size)

    def reserve(self, size: int) -> Optional[Room]:
        """Reserve ``size`` bytes; None if they do not fit or the counter is missing."""
        value = self._server.call("incr", self._counter, size)
        if value is None:
            return None
        if _used(value) <= self.limit:
            return Room(_epoch(value), 0)
        self.release(_epoch(value), size)
        return None

    def release(self, epoch: int, size: int) -> None:
        """Take back a reservation that was not used, if it can be done safely."""
        for _ in range(10):
            found, cas = self._server.call("gets", self._counter)
            value = _number(found)
            if value is None or _epoch(value) != epoch:
                return
            lower = b"%d" % (value - size)
            if self._server.call("cas", self._counter, lower, cas, repeatable=False):
                return

    def make_room(self, name: str, size: int) -> Room:
        """Reserve ``size`` bytes for an entry called ``name``, by a recount unless another one made room.

        :raises BackendUnavailableError: if others keep making room until the time-out and the life of a lock are over.
        """
        deadline = time.monotonic() + self._server.patience + _LOCK_SECONDS
        token = secrets.token_bytes(8)
        evicted = 0
        with self._one_at_a_time:
            # Whoever was in here before may have made room for all who queued.
            room = self._reserve_if_it_fits(size) if name else None
            if room is not None:
                return room
            while True:
                if self._server.call("add", self._lock, token, expire=_LOCK_SECONDS, repeatable=False):
                    try:
                        epoch, more = self._recount(name, size)
                    finally:
                        self._unlock(token)
                    evicted += more
                    if epoch is not None:
                        return Room(epoch, evicted)
                else:
                    room = self._reserve_if_it_fits(size)
                    if room is not None:
                        return Room(room.epoch, evicted)
                if time.monotonic() > deadline:
                    raise BackendUnavailableError(
                        f"Memcached at {self._server.address} is crowded: making room took longer than "
                        f"{self._server.patience + _LOCK_SECONDS:g} s; raise max_bytes or socket_timeout"
                    )
                time.sleep(random.uniform(0.5, 1.5) * _POLL_SECONDS)  # noqa: S311 - only spreads the callers

    def settle(self, room: Room, name: str, size: int) -> int:
        """Reserve again for an entry that is written, until a reservation outlives its own check."""
        evicted = room.evicted
        while not self._is_current(room.epoch):
            room = self.reserve(size) or self.make_room(name, size)
            evicted += room.evicted
        return evicted

    def _is_current(self, epoch: int) -> bool:
        value = self._server.call("incr", self._counter, 0)
        return value is not None and _epoch(value) == epoch

    def _overwrite(self, name: str, blob: bytes, expire: int) -> Optional[Room]:
        """Replace an entry whose own bytes give the room; None if that does not suffice or it changes.

        If exactly the entry that was seen is replaced, the live bytes grow by the difference only, so a full
        cache can be overwritten without a recount.
        """
        before, cas = self._server.call("gets", name)
        if before is None:
            return None
        growth = max(0, len(blob) - len(before))
        room = self.reserve(growth)
        if room is not None and not self._server.call("cas", name, blob, cas, expire=expire, repeatable=False):
            self.release(room.epoch, growth)
            return None
        return room

    def _reserve_if_it_fits(self, size: int) -> Optional[Room]:
        value = _number(self._server.call("get", self._counter))
        if value is None or _used(value) + size > self.limit:
            return None
        return self.reserve(size)

    def _recount(self, name: str, size: int) -> Tuple[Optional[int], int]:
        """Return the epoch in which ``size`` bytes are reserved, or None to start over; and the evictions."""
        epoch = self._begin_epoch()
        if epoch is None:
            return None, 0
        live = replaced = 0
        runs: List[List[Item]] = []
        for items in self._server.lists(self._prefix):
            live += sum(map(self.size_of, items))
            replaced += sum(self.size_of(item) for item in items if item.name == name)
            # Sorted in portions, and later no further than needed: all at once would hold up every other thread.
            runs.append(sorted((item for item in items if item.name != name), key=_age))
        # The entry of the same name is about to go, but until then it counts.
        need = max(0, size - replaced)
        evicted = 0
        if live + need > self.limit:
            victims = self._victims(heapq.merge(*runs, key=_age), live + need - self.limit)
            for item, deleted in zip(victims, self._server.delete_unchanged(victims)):
                if deleted:
                    evicted += 1
                    live -= self.size_of(item)
        for _ in range(10):
            found, cas = self._server.call("gets", self._counter)
            value = _number(found)
            if value is None or _epoch(value) != epoch:
                break
            used = live + need + max(0, _used(value) - self.limit)
            final = b"%d" % (epoch << _SHIFT | used)
            if used <= self.limit and self._server.call("cas", self._counter, final, cas, repeatable=False):
                return epoch, evicted
            # Somebody is about to take a reservation back, or wrote a victim anew.
            time.sleep(_POLL_SECONDS / 5)
        return None, evicted

    def _begin_epoch(self) -> Optional[int]:
        """Move the counter to a new epoch and to the limit; None if somebody was faster."""
        found, cas = self._server.call("gets", self._counter)
        value = _number(found)
        # Where the counter is lost, the epoch only has to differ from the lost one's.
        epoch = random.randrange(_EPOCHS) if value is None else (_epoch(value) + 1) % _EPOCHS  # noqa: S311
        full = b"%d" % (epoch << _SHIFT | self.limit)
        if found is None:
            done = self._server.call("add", self._counter, full, repeatable=False)
        else:
            done = self._server.call("cas", self._counter, full, cas, repeatable=False)
        return epoch if done else None

    def _victims(self, items: Iterable[Item], excess: int) -> List[Item]:
        """Return those of ``items``, least recently used first, that have to go, and some more for the slack."""
        victims, freed = [], 0
        for item in items:
            size = self.size_of(item)
            if freed >= excess and freed + size > excess + self._slack:
                break
            victims.append(item)
            freed += size
        return victims

    def _unlock(self, token: bytes) -> None:
        holder, cas = self._server.call("gets", self._lock)
        if holder == token:
            self._server.call("cas", self._lock, b"", cas, expire=-1, repeatable=False)

    def size_of(self, item: Item) -> int:
        """Return what an item counts."""
        return self._size(item.name, item.length)

    def _size(self, name: str, length: int) -> int:
        return len(name) - len(self._prefix) + length - self._overhead


def _age(item: Item) -> Tuple[int, int]:
    # The server notes uses in whole seconds, and numbers writes one by one.
    return item.last_use, item.cas


def _number(value: Optional[bytes]) -> Optional[int]:
    """Return the counter, or None if there is none or somebody spoilt it."""
    return int(value) if value is not None and value.strip().isdigit() else None


def _epoch(value: int) -> int:
    return value >> _SHIFT


def _used(value: int) -> int:
    return value & ((1 << _SHIFT) - 1)
