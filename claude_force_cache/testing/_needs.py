"""What checks need of a backend or of its suite, and what the report says where it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from ._checks import Need
    from ._kit import Kit

__all__ = [
    "able",
    "coarse_lives",
    "exact_order",
    "hook",
    "one_partition",
    "settable_clock",
    "unable",
    "usage_order",
    "writable_time",
]


def able(capability: str) -> Need:
    """Need a capability that is declared."""

    def need(kit: Kit) -> Optional[str]:
        return None if getattr(kit.capabilities, capability) else f"the backend declares {capability}=False"

    return need


def unable(capability: str) -> Need:
    """Need a capability that is declared to be missing."""

    def need(kit: Kit) -> Optional[str]:
        return f"the backend declares {capability}=True" if getattr(kit.capabilities, capability) else None

    return need


def hook(name: str) -> Need:
    """Need a hook that the suite defines."""

    def need(kit: Kit) -> Optional[str]:
        return None if kit.has_hook(name) else f"the suite does not define the hook {name}"

    return need


settable_clock = able("injectable_clock")
"""Need a backend that reads the time from the clock that it is given."""


def writable_time(kit: Kit) -> Optional[str]:
    """Need a way to let time pass."""
    if kit.capabilities.injectable_clock or kit.has_hook("advance_clock"):
        return None
    return "the backend declares injectable_clock=False and the suite does not define the hook advance_clock"


def coarse_lives(kit: Kit) -> Optional[str]:
    """Need a resolution of lives that is a weakness."""
    return None if kit.late else "the backend declares ttl_resolution=0, which other checks hold it to"


def one_partition(kit: Kit) -> Optional[str]:
    """Need one limit for the whole namespace."""
    partitions = kit.capabilities.partitions
    return None if partitions == 1 else f"the backend declares partitions={partitions}, which evict apart"


def exact_order(kit: Kit) -> Optional[str]:
    """Need an order of uses that is the same for all who use the store, at once."""
    recency = kit.capabilities.recency
    return f"the backend declares recency={recency:g} s" if recency else None


def usage_order(kit: Kit) -> Optional[str]:
    """Need an order of eviction that can be told from outside."""
    recency = kit.capabilities.recency
    if recency is None:
        return "the backend declares recency=None: eviction has nothing to do with use"
    if recency > 0 and writable_time(kit) is not None:
        return f"the backend declares recency={recency:g} s, and {writable_time(kit)}"
    return one_partition(kit)
