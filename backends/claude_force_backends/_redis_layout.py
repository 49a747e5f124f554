"""How a namespace lies in a Redis: its partitions, their names, and the hash slots of a cluster.

Partition *i* of *n* lies in the *i*-th of *n* equal ranges of the 16,384 slots. So a server that holds one
unbroken run of slots has its share of the partitions, give or take less than two. A key belongs to a partition
by its CRC-32, which spreads keys of any form evenly.
"""

from __future__ import annotations

import zlib
from binascii import crc_hqx
from typing import Dict, Iterable, List

__all__ = ["SLOTS", "Layout", "record_name", "slot_of"]

SLOTS = 16384
"""How many hash slots a Redis Cluster has."""


def slot_of(tag: str) -> int:
    """Return the hash slot of every key whose name has ``{tag}`` in it."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def record_name(namespace: str) -> str:
    """Return the name under which the store remembers into how many partitions a namespace is split."""
    return f"cfc:{{{namespace}}}:partitions"


class Layout:
    """A namespace that is split into ``partitions``. Layouts of different numbers have no name in common.

    :param prefixes: of each partition, what its names begin with.
    :param slots: of each partition, its hash slot.
    """

    def __init__(self, namespace: str, partitions: int) -> None:
        self.partitions = partitions
        tags = _tags(namespace, partitions)
        self.prefixes = [f"cfc:{{{tag}}}:" for tag in tags]
        self.slots = [slot_of(tag) for tag in tags]

    def partition(self, key: str) -> int:
        """Return the partition that a key belongs to."""
        return zlib.crc32(key.encode()) % self.partitions if self.partitions > 1 else 0

    def parted(self, keys: Iterable[str]) -> Dict[int, List[str]]:
        """Return the keys by partition."""
        if self.partitions == 1:
            return {0: list(keys)}
        parted: Dict[int, List[str]] = {}
        for key in keys:
            parted.setdefault(self.partition(key), []).append(key)
        return parted

    def data(self, partition: int, key: str) -> str:
        """Return the name under which the entry of a key is stored."""
        return f"{self.prefixes[partition]}d:{key}"


def _tags(namespace: str, partitions: int) -> List[str]:
    """Return a tag for each partition: the first number of all whose slot lies in the partition's range."""
    stem = namespace if partitions == 1 else f"{namespace}/{partitions}"
    tags = [""] * partitions
    missing, number = partitions, 0
    while missing:
        tag = f"{stem}:{number}"
        partition = slot_of(tag) * partitions // SLOTS
        if not tags[partition]:
            tags[partition] = tag
            missing -= 1
        number += 1
    return tags
