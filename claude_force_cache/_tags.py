"""Tags: labels of entries, by which any number of them is invalidated at once, in constant time.

Each tag has a record in the store, its epoch: random bytes under a keyed name. An entry seals the epochs that its
tags had before its value was made, and is valid while all of them are still the same. To invalidate a tag is to
delete its record; the next entry makes another. A record that was deleted, evicted or has expired equals no
epoch, so to lose one costs misses and never serves what was invalidated.
"""

from __future__ import annotations

import os
from typing import Dict, Iterable, List, Mapping, Tuple

from ._errors import InvalidKeyError

__all__ = ["EPOCH_BYTES", "Epochs", "check_tags", "new_epoch", "pack_epochs", "unpack_epochs"]

EPOCH_BYTES = 16

_MOST_TAGS = 32
_LONGEST_TAG = 255

Epochs = Dict[str, bytes]
"""The epoch of each tag."""


def check_tags(tags: Iterable[str]) -> Tuple[str, ...]:
    """Return the tags, sorted, each once.

    :raises InvalidKeyError: if one is no text of 1 to 255 bytes in UTF-8, or there are more than 32.
    """
    if isinstance(tags, str):
        raise InvalidKeyError(f"tags are a sequence of texts: write ({tags!r},) instead of {tags!r}")
    unique: List[str] = []
    for tag in tags:
        try:
            fits = isinstance(tag, str) and 1 <= len(tag.encode()) <= _LONGEST_TAG
        except UnicodeEncodeError:
            fits = False
        if not fits:
            shown = repr(tag[:80]) if isinstance(tag, str) else f"a {type(tag).__name__}"
            raise InvalidKeyError(f"a tag is text of 1 to {_LONGEST_TAG} bytes in UTF-8, which {shown} is not")
        unique.append(tag)
    unique = sorted(set(unique))
    if len(unique) > _MOST_TAGS:
        raise InvalidKeyError(f"an entry has at most {_MOST_TAGS} tags, not {len(unique)}")
    return tuple(unique)


def new_epoch() -> bytes:
    """Return an epoch that no tag ever had."""
    return os.urandom(EPOCH_BYTES)


def pack_epochs(epochs: Mapping[str, bytes]) -> bytes:
    """Return tags and epochs as they are sealed: for each one its length in one byte, the tag, the epoch."""
    chunks: List[bytes] = []
    for tag, epoch in epochs.items():
        data = tag.encode()
        chunks += (bytes((len(data),)), data, epoch)
    return b"".join(chunks)


def unpack_epochs(labels: bytes) -> Epochs:
    """Return what :func:`pack_epochs` packed."""
    epochs: Epochs = {}
    start = 0
    while start < len(labels):
        middle = start + 1 + labels[start]
        epochs[labels[start + 1 : middle].decode()] = labels[middle : middle + EPOCH_BYTES]
        start = middle + EPOCH_BYTES
    return epochs
