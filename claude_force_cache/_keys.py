"""Keys: an injective encoding of a whole request, and its digests.

Two requests have the same encoding only if they are the same value of the same types, at every depth: every
part carries a tag for its type and its own length, and mappings are sorted. So ``["ab", "c"]`` differs from
``["a", "bc"]``, ``1`` from ``1.0``, ``"1"`` and ``True``, and a field that is absent from one that is None.
The encoding is part of what is stored: a change to it needs a new version in the key derivation.
"""

from __future__ import annotations

import hashlib
import marshal
import math
import struct
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

from ._errors import InvalidKeyError

__all__ = ["Digest", "KeyPart", "digest", "encode_key", "encode_text", "is_plain", "spelling"]


class Digest(bytes):
    """The SHA-256 digest of a key part, made by :func:`digest`; stands for that part inside a larger key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Digest({self.hex()})"


KeyPart = Union[None, bool, int, float, str, bytes, Digest, Sequence[Any], Mapping[str, Any]]
"""What a key is made of: a scalar, or sequences and mappings with text keys of such, to any depth."""

_PLAIN = frozenset((type(None), bool, int, float, str))

# No spelling begins with a zero byte by itself.
_LED = b"\0"

# The last format of marshal in which the same object in two places is spelt twice: one for each value.
_SPELLING = 2

_length = struct.Struct(">Q").pack
_double = struct.Struct(">d").pack


def digest(part: KeyPart) -> Digest:
    """Return the digest of a part of keys that never changes, to compute it once.

    :raises InvalidKeyError: if the part cannot be encoded.
    """
    return Digest(hashlib.sha256(encode_key(part)).digest())


def encode_key(part: KeyPart) -> bytes:
    """Return the encoding of ``part``.

    :raises InvalidKeyError: if it holds a type without an encoding, a mapping key that is not text, a NaN,
        text with a lone surrogate, or itself.
    """
    chunks: List[bytes] = []
    try:
        _encode(part, chunks.append)
    except UnicodeEncodeError as error:
        raise InvalidKeyError(
            f"text in a key has a lone surrogate at position {error.start}, which has no UTF-8 form: "
            "decode the text with errors='replace' where it comes from"
        ) from None
    except RecursionError:
        raise InvalidKeyError("a key is nested too deeply, or holds itself") from None
    return b"".join(chunks)


def _encode(part: Any, emit: Callable[[bytes], None]) -> None:
    encoder = _ENCODERS.get(type(part))
    if encoder is None:
        encoder = _encoder_of_subclass(part)
    encoder(part, emit)


def spelling(part: Any) -> Optional[bytes]:
    """Return bytes by which to recognise a key that was encoded before, or None if it cannot be spelt.

    It takes a tenth of the time of an encoding. Spellings differ where encodings do for keys that are
    :func:`is_plain`, and no other key is spelt as a plain one.
    """
    try:
        if _is_led(part):
            return b"".join((_LED, part[0], marshal.dumps(part[1:], _SPELLING)))
        return marshal.dumps(part, _SPELLING)
    except ValueError:
        return None


def is_plain(part: Any) -> bool:
    """Return whether a key holds only None, booleans, numbers, text, lists, tuples and dictionaries, no subclasses.

    But a tuple may begin with a :class:`Digest`.
    """
    parts = [
        part[1:] if _is_led(part) else part
    ]  # not by recursion: what can be encoded may lie as deep as that can go
    for each in parts:
        kind = type(each)
        if kind is dict:
            if not all(type(name) is str for name in each):
                return False
            parts.extend(each.values())
        elif kind in (list, tuple):
            parts.extend(each)
        elif kind not in _PLAIN:
            return False
    return True


def _is_led(part: Any) -> bool:
    return type(part) is tuple and part != () and type(part[0]) is Digest


def encode_text(part: str) -> bytes:
    """Return the encoding of text; see :func:`encode_key`.

    :raises UnicodeEncodeError: if it has a lone surrogate.
    """
    data = str.encode(part)  # a subclass may have another encode
    return b"S" + _length(len(data)) + data


def _encode_text(part: str, emit: Callable[[bytes], None]) -> None:
    data = str.encode(part)  # one call less than encode_text, for each text of a key
    emit(b"S" + _length(len(data)) + data)


def _encode_bytes(part: bytes, emit: Callable[[bytes], None]) -> None:
    emit(b"B" + _length(len(part)) + part)


def _encode_integer(part: int, emit: Callable[[bytes], None]) -> None:
    try:
        data = b"%d" % part
    except ValueError:
        raise InvalidKeyError("a key holds an integer of thousands of digits, which Python does not print") from None
    emit(b"I" + _length(len(data)) + data)


def _encode_float(part: float, emit: Callable[[bytes], None]) -> None:
    if math.isnan(part):
        raise InvalidKeyError("a key cannot hold NaN, which equals nothing, not even itself")
    emit(b"D" + _double(part))


def _encode_sequence(part: Sequence[Any], emit: Callable[[bytes], None]) -> None:
    emit(b"L" + _length(len(part)))
    for item in part:
        _encode(item, emit)


def _encode_mapping(part: Mapping[str, Any], emit: Callable[[bytes], None]) -> None:
    for name in part:
        if not isinstance(name, str):
            raise InvalidKeyError(f"a mapping in a key has a key of type {type(name).__name__}: use text")
    emit(b"M" + _length(len(part)))
    for name in sorted(part):
        _encode_text(name, emit)
        _encode(part[name], emit)


_ENCODERS: Dict[type, Callable[[Any, Callable[[bytes], None]], None]] = {
    type(None): lambda _, emit: emit(b"N"),
    bool: lambda part, emit: emit(b"T" if part else b"F"),
    int: _encode_integer,
    float: _encode_float,
    str: _encode_text,
    bytes: _encode_bytes,
    Digest: lambda part, emit: emit(b"H" + part),
    list: _encode_sequence,
    tuple: _encode_sequence,
    dict: _encode_mapping,
}


def _encoder_of_subclass(part: Any) -> Callable[[Any, Callable[[bytes], None]], None]:
    for kind in (int, float, str, bytes, list, tuple):
        if isinstance(part, kind):
            return _ENCODERS[kind]
    if isinstance(part, Mapping):
        return _encode_mapping
    raise InvalidKeyError(
        f"a key cannot hold a {type(part).__name__}: use None, booleans, numbers, text, bytes, sequences and mappings"
    )
