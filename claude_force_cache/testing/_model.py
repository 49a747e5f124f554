"""What a perfect backend would hold: a dictionary and arithmetic, sharing no code with any backend."""

from __future__ import annotations

import itertools
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional

__all__ = ["Known", "Model", "is_life", "size_of"]

_MILLISECOND = 0.001


def size_of(key: str, value: bytes) -> int:
    """Return the size of an entry, as the contract defines it."""
    return len(key) + len(value)


def is_life(seen: Optional[float], expires: Optional[float], now: float, late: float, *, exact: bool) -> bool:
    """Whether ``seen`` may be what is left of a life; ``exact`` if time stood still meanwhile."""
    if seen is None or expires is None:
        return seen is None and expires is None
    right = expires - now
    # An entry that the store keeps a little longer than its life may say so.
    least = right - _MILLISECOND if exact else 0.0
    return bool(min(least, 0.0 if late else least) <= seen <= right + late + _MILLISECOND)


class Known(NamedTuple):
    """What the model knows of one entry.

    :param write: tells the writes of one key apart.
    :param used: the place of its last use in the order of all uses.
    :param used_at: when that was, by the clock.
    """

    value: bytes
    expires: Optional[float]
    write: int
    used: int
    used_at: float


class Model:
    """The entries of one namespace.

    :param max_bytes: the limit of the namespace.
    :param largest: returns the size of the largest entry that may be stored under a key.
    :param resolution: seconds by which an entry may outlive its life.
    :param now: the clock.
    """

    def __init__(
        self, max_bytes: int, largest: Callable[[str], int], resolution: float, now: Callable[[], float]
    ) -> None:
        self.max_bytes = max_bytes
        self.largest = largest
        self._resolution = resolution
        self.now = now
        self.entries: Dict[str, Known] = {}
        self._writes = itertools.count()
        self._uses = itertools.count()

    @property
    def total(self) -> int:
        """The sum of the sizes of all live entries."""
        return sum(self.size(key) for key in self.entries)

    def size(self, key: str) -> int:
        """Return the size of the entry under ``key``."""
        return size_of(key, self.entries[key].value)

    def purge(self) -> None:
        """Forget what can no longer be live."""
        now = self.now()
        self.entries = {
            key: entry
            for key, entry in self.entries.items()
            if entry.expires is None or now < entry.expires + self._resolution
        }

    def in_doubt(self) -> List[str]:
        """Return the keys whose life is over by less than the resolution."""
        now = self.now()
        return [key for key, entry in self.entries.items() if entry.expires is not None and now >= entry.expires]

    def find(self, key: str) -> Optional[Known]:
        """Return the live entry under ``key``, which counts as its use, or None."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries[key] = entry._replace(used=next(self._uses), used_at=self.now())
        return entry

    def put(self, key: str, value: bytes, ttl: Optional[float]) -> None:
        """Store an entry in place of its predecessor."""
        expires = None if ttl is None else self.now() + ttl
        self.entries[key] = Known(value, expires, next(self._writes), next(self._uses), self.now())

    def touch(self, key: str, ttl: Optional[float]) -> None:
        """Give a live entry a new life."""
        self.find(key)
        self.entries[key] = self.entries[key]._replace(expires=None if ttl is None else self.now() + ttl)

    def remove(self, keys: Iterable[str]) -> Dict[str, Known]:
        """Forget entries, and return them."""
        return {key: self.entries.pop(key) for key in keys}
