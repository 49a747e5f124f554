"""What a store can do: the full contract by default, every weakness a field that has to be written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

__all__ = ["Capabilities"]


@dataclass(frozen=True)
class Capabilities:
    """The weaknesses of a store. A field that is not set promises the whole contract.

    :param ttl_resolution: seconds by which an entry may outlive its ``ttl``; it never dies early.
    :param max_ttl: the longest life in seconds that the store can give, or None for any. The core shortens
        longer ones.
    :param max_value_bytes: the longest value in bytes that the store takes, or None for any.
    :param recency: eviction takes the least recently used entry first, where uses that lie closer together
        than this many seconds may count as simultaneous; None if eviction has nothing to do with use.
    :param eviction_slack: the share of ``max_bytes`` that one eviction may free beyond what is needed.
    :param partitions: into how many parts the limit is divided. Each holds ``max_bytes // partitions``
        bytes, takes no entry above that, and evicts among its own entries.
    :param constant_time_usage: ``usage()`` costs the same however many entries there are.
    :param injectable_clock: the backend reads all time from the clock that it is given.
    :param persistent: entries are still there after ``close``, for the next backend on the same store.
    :param shared_between_processes: processes that open the same store see the same entries.
    :param shared_between_machines: so do machines. The core then refuses to invent a secret by itself.
    """

    ttl_resolution: float = 0.0
    max_ttl: Optional[float] = None
    max_value_bytes: Optional[int] = None
    recency: Optional[float] = 0.0
    eviction_slack: float = 0.0
    partitions: int = 1
    constant_time_usage: bool = True
    injectable_clock: bool = True
    persistent: bool = True
    shared_between_processes: bool = True
    shared_between_machines: bool = True
