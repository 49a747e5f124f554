"""Sealing: what is stored is bound to where, for whom and for how long it was stored.

A sealed entry is::

    format 2 | coding 1 | key id 8 | created 8 | expires 8 | kept 8 | length 4 | labels 2 | nonce 12 | payload
    | tag 32 or 16

Numbers are big-endian; times are milliseconds since the epoch, 0 for "never". An entry is fresh until
``expires`` and may be used as a stale one until ``kept``. The payload, before compression ``length`` bytes, is
the labels (see :mod:`._tags`; ``labels`` bytes) and the value. The tag covers everything before it, and the
namespace, tenant, schema and key that the entry was made for. Nothing is decompressed or decoded before the
tag was checked.

The algorithm is the cache's setting and is never read from the entry: HMAC-SHA256, or with ``encrypt``
AES-256-GCM. For the latter each key has its own AES key, derived from the seal key, so that random nonces
may repeat only for writes of the same key (NIST SP 800-38D allows 2**32 under one AES key).

A value that a store cannot hold in one entry lies beside a stand-in, an entry whose coding says so and whose
payload is for :mod:`._chunks` to read.
"""

from __future__ import annotations

import hmac
import os
import struct
import threading
from typing import NamedTuple, Optional, Tuple

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ._keys import encode_key, encode_text
from ._secrets import Keys

__all__ = [
    "AES",
    "HMAC",
    "MAX_LENGTH",
    "CorruptEntryError",
    "Life",
    "Opened",
    "Sealer",
    "declared_length",
    "is_stand_in",
    "key_id_of",
]

HMAC = "HMAC-SHA256"
AES = "AES-256-GCM"

MAX_LENGTH = 1 << 28
"""The longest value in bytes that is sealed or opened: 256 MiB."""

_FORMAT = b"\xcf\x02"
_PLAIN, _ZSTD, _ELSEWHERE = 0, 1, 2
_STAND_IN = _FORMAT + bytes([_ELSEWHERE])
_HEADER = struct.Struct(">2sB8sQQQIH12s")
_COMPRESS_FROM = 512
# The default, 3, takes up to twice the time for one to five bytes of a hundred.
_LEVEL = 1
_contexts = threading.local()


class CorruptEntryError(Exception):
    """Raised when a stored entry is not what was sealed for this key; never leaves the core."""


class Life(NamedTuple):
    """When a value was made, until when it is fresh and until when it is kept. Seconds since 1970, None for ever."""

    created_at: float
    expires_at: Optional[float]
    kept_until: Optional[float]


class Opened(NamedTuple):
    """A sealed entry whose tag was right. Times are seconds since the epoch."""

    value: bytes
    created_at: float
    expires_at: Optional[float]
    kept_until: Optional[float]
    labels: bytes


def key_id_of(sealed: bytes) -> Optional[bytes]:
    """Return the id of the key that an entry says it was sealed with, or None if it is no sealed entry."""
    if len(sealed) < _HEADER.size or not sealed.startswith(_FORMAT):
        return None
    return sealed[3:11]


def declared_length(sealed: bytes) -> int:
    """Return how long the value will be, as the entry says; not verified, so good for planning only."""
    return int.from_bytes(sealed[35:39], "big")


def is_stand_in(sealed: bytes) -> bool:
    """Return whether an entry says that its value lies elsewhere; not verified."""
    return sealed[:3] == _STAND_IN


class Sealer:
    """Seals and opens the entries of one secret, namespace, tenant and schema. Safe for threads."""

    def __init__(self, keys: Keys, *, algorithm: str, namespace: str, tenant: str, schema: str, compress: bool) -> None:
        self.key_id = keys.id
        self._seal_key = keys.seal
        self._encrypt = algorithm == AES
        self._tag_length = 16 if self._encrypt else 32
        self._least = _HEADER.size + self._tag_length
        self._context = encode_key([algorithm, namespace, tenant, schema])
        self._bound = hmac.new(keys.seal, self._context, "sha256")  # copied for each entry, and so never made again
        self._compress = compress

    def seal(self, key: str, value: bytes, life: Life, labels: bytes = b"") -> bytes:
        """Return ``value`` and ``labels`` sealed for ``key`` and for its life.

        :raises ValueError: if both together are above 256 MiB, or the labels above 64 KiB.
        """
        if len(labels) + len(value) > MAX_LENGTH:
            raise ValueError(f"a value of {len(value)} bytes is above {MAX_LENGTH}")
        if len(labels) > 0xFFFF:
            raise ValueError(f"labels of {len(labels)} bytes are above {0xFFFF}")
        whole = labels + value if labels else value
        coding, payload = _PLAIN, whole
        if self._compress and len(whole) >= _COMPRESS_FROM:
            compressed = _compressor().compress(whole)
            if len(compressed) < len(whole):
                coding, payload = _ZSTD, compressed
        dates = (int(life.created_at * 1000), _milliseconds(life.expires_at), _milliseconds(life.kept_until))
        return self._lock(key, coding, dates, (len(whole), len(labels)), payload)

    def seal_stand_in(self, key: str, sealed: bytes, payload: bytes) -> bytes:
        """Return an entry for ``key`` with the life of ``sealed``, which this sealer sealed for the same key."""
        dates = _HEADER.unpack_from(sealed)[3:6]
        return self._lock(key, _ELSEWHERE, dates, (len(payload), 0), payload)

    def open_stand_in(self, key: str, sealed: bytes) -> bytes:
        """Return the payload of a stand-in.

        :raises CorruptEntryError: as :meth:`open`, and if it is an entry with a value.
        """
        payload = self._unlock(key, sealed)
        if not is_stand_in(sealed):
            raise CorruptEntryError("not a stand-in")
        return payload

    def open(self, key: str, sealed: bytes) -> Opened:
        """Return what was sealed for ``key``.

        :raises CorruptEntryError: if it is anything else than the whole, unaltered entry sealed for this key.
        """
        whole = self._unlock(key, sealed)
        _, coding, _, created, expires, kept, length, labels, _ = _HEADER.unpack_from(sealed)
        if coding != _PLAIN or len(whole) != length:
            whole = _expand(coding, whole, length)
        return Opened(
            whole[labels:] if labels else whole,
            created / 1000,
            expires / 1000 if expires else None,
            kept / 1000 if kept else None,
            whole[:labels] if labels else b"",
        )

    def _lock(
        self, key: str, coding: int, dates: Tuple[int, int, int], lengths: Tuple[int, int], payload: bytes
    ) -> bytes:
        """Return an entry with its tag. The lengths are those of the payload before compression, and of its labels."""
        nonce = os.urandom(12)
        header = _HEADER.pack(_FORMAT, coding, self.key_id, *dates, *lengths, nonce)
        if self._encrypt:
            bound = self._context + encode_text(key)
            return header + self._cipher(bound).encrypt(nonce, payload, bound + header)
        body = header + payload
        return body + self._tag(key, body)

    def _unlock(self, key: str, sealed: bytes) -> bytes:
        """Return the payload of an entry whose tag is right, which says so of its header too."""
        if len(sealed) < self._least:
            raise CorruptEntryError("too short")
        if sealed[:2] != _FORMAT or sealed[3:11] != self.key_id:
            raise CorruptEntryError("not sealed with the key that it is stored under")
        if self._encrypt:
            header = sealed[: _HEADER.size]
            bound = self._context + encode_text(key)
            try:
                return self._cipher(bound).decrypt(header[-12:], sealed[_HEADER.size :], bound + header)
            except InvalidTag:
                raise CorruptEntryError("wrong tag") from None
        if not hmac.compare_digest(self._tag(key, sealed[:-32]), sealed[-32:]):
            raise CorruptEntryError("wrong tag")
        return sealed[_HEADER.size : -32]

    def _tag(self, key: str, body: bytes) -> bytes:
        """Return HMAC-SHA256 under the seal key of the context, the key and the body of an entry."""
        state = self._bound.copy()
        state.update(encode_text(key) + body)
        return state.digest()

    def _cipher(self, bound: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._seal_key, bound, "sha256"))


def _milliseconds(moment: Optional[float]) -> int:
    return 0 if moment is None else max(1, int(moment * 1000))


def _expand(coding: int, payload: bytes, length: int) -> bytes:
    """Return the value of a payload that is not just it, spending no more memory than the header declares."""
    try:
        if coding == _ZSTD and length <= MAX_LENGTH and zstandard.frame_content_size(payload) == length:
            value = _decompressor().decompress(payload, max_output_size=length)
            if len(value) == length:
                return value
    except zstandard.ZstdError as error:
        raise CorruptEntryError(f"cannot be decompressed: {error}") from None
    raise CorruptEntryError("not of the length that its header says")


def _compressor() -> zstandard.ZstdCompressor:
    context: Optional[zstandard.ZstdCompressor] = getattr(_contexts, "compressor", None)
    if context is None:
        context = _contexts.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return context


def _decompressor() -> zstandard.ZstdDecompressor:
    context: Optional[zstandard.ZstdDecompressor] = getattr(_contexts, "decompressor", None)
    if context is None:
        context = _contexts.decompressor = zstandard.ZstdDecompressor()
    return context
