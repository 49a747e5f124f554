"""The in-process tier: values that were opened a moment ago, kept decoded, above any backend."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Callable, NamedTuple, Optional

__all__ = ["Tier", "TierEntry"]

_OVERHEAD = 256
"""What an entry costs beside its key and value, in bytes: the objects that hold it, rounded up."""


class TierEntry(NamedTuple):
    """A value in the tier. Times are seconds since the epoch; ``size`` is what it is charged, in bytes.

    :param name: the stored key.
    :param make: makes the value of ``value``, one for each reader; None if that is the value, and all may share it.
    :param alone: whether the store did not take it, so that it is nowhere else.
    """

    name: str
    value: Any
    make: Optional[Callable[[bytes], Any]]
    created_at: float
    expires_at: Optional[float]
    kept_at: float
    size: int
    alone: bool = False


class Tier:
    """A bounded map from stored keys to values, least recently used first out. Safe for threads.

    :param max_bytes: the limit of the sum over entries of key, encoded value and a fixed overhead.
    :param max_age: seconds after which an entry is read from the backend again, so that what other processes
        do is seen at most that much later. What the store did not take begins to age when it is back.
    """

    def __init__(self, max_bytes: int, max_age: float) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._entries: OrderedDict[str, TierEntry] = OrderedDict()
        self._bytes = 0
        self._generation = 0
        self._away_until = 0.0
        self._lock = threading.Lock()

    @property
    def generation(self) -> int:
        """Changes with everything that this process changes, here or in the store; see :meth:`put`."""
        return self._generation

    def advance(self) -> None:
        """Say that the store changed, so that what is being read from it now may be out of date."""
        with self._lock:
            self._generation += 1

    def get(self, key: str, now: float) -> Optional[TierEntry]:
        """Return the entry if it is neither expired nor stale at ``now``, nor from a time after it."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            fresh_since = max(entry.kept_at, self._away_until) if entry.alone else entry.kept_at
            if not (entry.kept_at <= now < fresh_since + self._max_age) or (
                entry.expires_at is not None and now >= entry.expires_at
            ):
                self._remove(key)
                return None
            self._entries.move_to_end(key)
            return entry

    def put(
        self,
        key: str,
        value: Any,
        *,
        make: Optional[Callable[[bytes], Any]],
        length: int,
        created_at: float,
        expires_at: Optional[float],
        now: float,
        read: Optional[int] = None,
    ) -> None:
        """Keep a value whose encoding is ``length`` bytes long; one that cannot fit is not kept.

        :param read: for a value that was read from the store, the generation before that. If it is over, the
            value may be older than what this process has stored or deleted since, and is not kept.
        """
        size = len(key) + length + _OVERHEAD
        with self._lock:
            if read is None:
                self._generation += 1
            elif read != self._generation:
                return
            self._remove(key)
            if size > self._max_bytes:
                return
            self._entries[key] = TierEntry(key, value, make, created_at, expires_at, now, size)
            self._bytes += size
            self._make_room()

    def exchange(self, entry: TierEntry, data: bytes, make: Callable[[bytes], Any]) -> None:
        """Keep other bytes of which the same value is made, if the entry is still there."""
        size = len(entry.name) + len(data) + _OVERHEAD
        with self._lock:
            if self._entries.get(entry.name) is entry:
                self._entries[entry.name] = entry._replace(value=data, make=make, size=size)
                self._bytes += size - entry.size
                self._make_room()

    def leave_alone(self, key: str) -> None:
        """Say that the store did not take an entry."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries[key] = entry._replace(alone=True)

    def away_until(self, moment: float) -> None:
        """Say until when the store takes nothing."""
        self._away_until = moment

    def discard(self, key: str) -> None:
        """Forget one entry, if it is there."""
        with self._lock:
            self._generation += 1
            self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._generation += 1
            self._entries.clear()
            self._bytes = 0

    def _make_room(self) -> None:
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
