"""What a cache returns besides values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Generic, Optional, Tuple, TypeVar

from ._backend import Usage

__all__ = ["MISSING", "CacheEntry", "CacheStats", "Missing", "StoredEntry", "VerifyReport"]

V = TypeVar("V")


class Missing(enum.Enum):
    """The type of :data:`MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING = Missing.MISSING
"""What ``get`` returns where there is no usable entry; None is a value like any other."""


@dataclass(frozen=True, init=False)
class CacheEntry(Generic[V]):
    """A value with its history. Times are seconds since the epoch, ``age`` is in seconds.

    :param expires_at: when the value stops, or stopped, to be fresh; None for never.
    :param cached: False only for the one caller whose ``compute`` made the value just now.
    :param stale: whether it is no longer fresh: a new one is on its way, or could not be made.
    :param tier: whether it came out of the in-process tier.
    :param tags: what it can be invalidated by; empty if it came out of the tier, which does not know.
    """

    value: V
    key: str
    created_at: float
    expires_at: Optional[float]
    age: float
    cached: bool
    stale: bool = False
    tier: bool = False
    tags: Tuple[str, ...] = ()

    def __init__(
        self,
        value: V,
        key: str,
        created_at: float,
        expires_at: Optional[float],
        age: float,
        *,
        cached: bool,
        stale: bool = False,
        tier: bool = False,
        tags: Tuple[str, ...] = (),
    ) -> None:
        # Every hit makes one, and what a frozen dataclass does by itself for each field takes three times as long.
        self.__dict__.update(
            value=value,
            key=key,
            created_at=created_at,
            expires_at=expires_at,
            age=age,
            cached=cached,
            stale=stale,
            tier=tier,
            tags=tags,
        )

    def _but(self, **changes: Any) -> CacheEntry[V]:
        # Everybody who waits for a value gets one, and dataclasses.replace takes ten times as long.
        other: CacheEntry[V] = object.__new__(CacheEntry)
        other.__dict__.update(self.__dict__, **changes)
        return other


@dataclass(frozen=True)
class StoredEntry(Generic[V]):
    """An entry as it lies in the store.

    :param key: the stored key.
    :param size: what the account has for it, in bytes, with the parts that it may lie in.
    :param state: ``ok``; ``stale``, kept beyond its freshness; ``invalidated``, by one of its tags; ``corrupt``;
        ``incomplete``, because parts of it had to make room; ``foreign``, sealed with a secret that this cache
        does not have; or ``other``, something that is no answer by itself, such as the record of a tag, or a part.
    :param created_at: seconds since the epoch, None where the entry could not be opened.
    :param expires_at: the end of its freshness in seconds since the epoch, or None, also for never.
    :param value: None where the entry could not be opened.
    :param tags: what it can be invalidated by.
    :param invalidated_by: those of them that were invalidated since.
    """

    key: str
    size: int
    state: str
    created_at: Optional[float] = None
    expires_at: Optional[float] = None
    value: Optional[V] = None
    tags: Tuple[str, ...] = ()
    invalidated_by: Tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheStats:
    """What one cache object has done since it was made.

    :param hits: look-ups that found a usable entry, also those answered by a flight that was under way.
    :param misses: look-ups that did not.
    :param stale: the part of ``hits`` that was past its freshness.
    :param tier_hits: the part of ``hits`` that the in-process tier answered.
    :param stores: entries stored.
    :param evictions: live entries that had to go to make room for those.
    :param corrupt: entries discarded because they were not what had been sealed.
    :param refused: values refused because they are too large.
    :param errors: reads and writes that the store did not carry out.
    :param lease_waits: how often this process waited for another one that was making the value.
    """

    hits: int = 0
    misses: int = 0
    stale: int = 0
    tier_hits: int = 0
    stores: int = 0
    evictions: int = 0
    corrupt: int = 0
    refused: int = 0
    errors: int = 0
    lease_waits: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of look-ups that were hits, from 0 to 1; 0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found.

    :param entries: how many live entries the store holds, counted one by one.
    :param bytes: the sum of their sizes.
    :param usage: the store's own account, taken when nothing changed meanwhile, if that was possible.
    :param corrupt: the keys of entries that are not what had been sealed.
    :param foreign: the keys of entries sealed with a secret that this cache does not have. They stay.
    :param repaired: how many corrupt entries were deleted.
    :param remains: the keys of parts without their entry and of entries without all their parts, which eviction
        leaves. With ``repair`` they were deleted.
    """

    entries: int
    bytes: int
    usage: Usage
    corrupt: Tuple[str, ...]
    foreign: Tuple[str, ...]
    repaired: int
    remains: Tuple[str, ...] = ()

    @property
    def consistent(self) -> bool:
        """Whether the account is what was counted."""
        return self.usage == Usage(self.entries, self.bytes)
