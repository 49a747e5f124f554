"""Chunks: a sealed value that is longer than the longest entry of a store lies there in parts.

It is sealed whole, as every value, and then cut. The parts are entries of their own, ``<name>.<id>.<number>``;
under the entry's name stands a manifest, a small sealed entry with the same life, which says how many parts there
are, how long they are together, and the last 16 bytes of the value's own tag. The first 8 of these, as hex digits,
are the id. Each sealing has another tag, so the parts of two values never get into each other's way: parts are
written first and the manifest last, readers have the old value until then, and of two writers the later one wins.

What is put together is opened as a value that was never cut. So nothing is trusted before the tag over all of it
was checked, and that tag is the one that the manifest was sealed with.
"""

from __future__ import annotations

import re
import struct
from typing import Dict, List, Mapping, NamedTuple, Optional

from ._backend import Entry
from ._capabilities import Capabilities
from ._errors import EntryTooLargeError
from ._sealing import MAX_LENGTH, CorruptEntryError

__all__ = ["IncompleteEntryError", "Limits", "Manifest", "cut", "entry_of"]

_MANIFEST = struct.Struct(">16sIH")
_MARK_BYTES = 16
_ID_BYTES = 8
_PART = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{16}\.[0-9]{1,4}\Z")
_PART_NAME_BYTES = 64 + 1 + 2 * _ID_BYTES + 1 + 4
_MOST_PARTS = 4096
_SHORTEST_PART = 1024

_PARTS_OF_A_SHARE = 32
"""In a limit that is divided, how many parts a share of it takes: enough that their hashes spread them evenly."""

_PATIENCE_BYTES = 1 << 22
"""How much may be moved in the time that a small value may take, in bytes."""

_MANIFEST_ENTRY_BYTES = 256
"""Rounded up: the manifest as a sealed entry."""

_LONGEST = MAX_LENGTH + 256
"""What no sealed value reaches, in bytes."""


class IncompleteEntryError(Exception):
    """Raised when parts of an entry are gone; never leaves the core."""

    def __init__(self, missing: List[str]) -> None:
        super().__init__(f"{len(missing)} of its parts are gone")
        self.missing = missing


class Limits(NamedTuple):
    """What fits into a store. All in bytes, None for no limit.

    :param value: the longest value that an entry can have.
    :param entry: the longest entry, with its key.
    :param total: what all entries of one value may come to.
    :param part: how long the parts of a value are that is cut; None where cutting does not help.
    """

    value: Optional[int]
    entry: Optional[int]
    total: Optional[int]
    part: Optional[int]

    @classmethod
    def of(cls, capabilities: Capabilities, max_bytes: Optional[int]) -> Limits:
        """Return the limits of a store whose namespace holds ``max_bytes``."""
        longest = capabilities.max_value_bytes
        value = part = None if longest is None or longest >= _LONGEST else longest
        entry = total = max_bytes
        if max_bytes is not None and capabilities.partitions > 1:
            entry = max_bytes // capabilities.partitions
            part = min(entry // _PARTS_OF_A_SHARE - _PART_NAME_BYTES, part or _LONGEST)
            # More could push out parts of its own, where chance fills one share before the others.
            total = max_bytes // 2
        return cls(value, entry, total, None if part is None or part < _SHORTEST_PART else part)

    def fits(self, name: str, sealed: bytes) -> bool:
        """Return whether a value goes into one entry, or is for the store to refuse."""
        return self.part is None or (
            (self.value is None or len(sealed) <= self.value)
            and (self.entry is None or len(name) + len(sealed) <= self.entry)
        )


class Manifest(NamedTuple):
    """Which parts make up an entry.

    :param mark: the last bytes of the sealed value.
    :param length: the length of the sealed value in bytes.
    :param parts: the number of its parts.
    """

    mark: bytes
    length: int
    parts: int

    @classmethod
    def unpack(cls, data: bytes) -> Manifest:
        """Return the manifest that was packed.

        :raises CorruptEntryError: if it is none, or says more than can be.
        """
        if len(data) == _MANIFEST.size:
            manifest = cls(*_MANIFEST.unpack(data))
            if 0 < manifest.parts <= _MOST_PARTS and manifest.parts <= manifest.length < _LONGEST:
                return manifest
        raise CorruptEntryError("not the manifest of a value in parts")

    def pack(self) -> bytes:
        """Return the manifest as bytes."""
        return _MANIFEST.pack(*self)

    def names(self, name: str) -> List[str]:
        """Return the names of the parts of the entry ``name``, in their order."""
        own = self.mark[:_ID_BYTES].hex()
        return [f"{name}.{own}.{number}" for number in range(self.parts)]

    def join(self, name: str, found: Mapping[str, Entry]) -> bytes:
        """Return the sealed value.

        :raises CorruptEntryError: if what was found under the names of its parts is not this value.
        """
        sealed = b"".join([found[part].value for part in self.names(name)])
        if len(sealed) != self.length or not sealed.endswith(self.mark):
            raise CorruptEntryError("its parts are not those that it was cut into")
        return sealed

    def size(self, name: str) -> int:
        """Return what the account has for the parts of the entry ``name``, in bytes."""
        return self.length + sum(map(len, self.names(name)))

    @property
    def patience(self) -> int:
        """How many times the time of a small value this one may take."""
        return 1 + self.length // _PATIENCE_BYTES


class Cut(NamedTuple):
    """A sealed value in parts, by name, and the manifest that goes with them."""

    manifest: Manifest
    parts: Dict[str, bytes]


def cut(name: str, sealed: bytes, limits: Limits) -> Cut:
    """Return a sealed value that does not fit, in parts of about the same length.

    :raises EntryTooLargeError: if they do not fit either.
    """
    room = limits.part or len(sealed)
    count = -(-len(sealed) // room)
    size = len(name) + len(sealed) + count * _PART_NAME_BYTES + _MANIFEST_ENTRY_BYTES
    most = min(limits.total or size, _MOST_PARTS * room)
    if size > most:
        raise EntryTooLargeError(size, most)
    step = -(-len(sealed) // count)
    manifest = Manifest(sealed[-_MARK_BYTES:], len(sealed), -(-len(sealed) // step))
    starts = range(0, len(sealed), step)
    return Cut(manifest, {part: sealed[at : at + step] for part, at in zip(manifest.names(name), starts)})


def entry_of(name: str) -> Optional[str]:
    """Return the name of the entry that ``name`` is a part of, by its looks; None if it is no part."""
    match = _PART.match(name)
    return match and match.group(1)
