"""Codecs: how the values of a cache become bytes, and come back."""

from __future__ import annotations

import json
import marshal
from typing import Any, Optional, TypeVar

from typing_extensions import Protocol

from ._errors import InvalidValueError

__all__ = ["BytesCodec", "Codec", "JSONCodec", "copied", "copy_of"]

V = TypeVar("V")

# Made once: json.dumps makes an encoder for each call that is not the plainest, and json.loads looks for blanks.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode

# The last format of marshal without references, which take longer.
_COPY_FORMAT = 2


class Codec(Protocol[V]):
    """Turns values into bytes and back. Encodes in the event loop; large values are decoded in a thread."""

    @property
    def schema(self) -> str:
        """The name and version of the encoding. It is sealed into every entry; change it with the encoding."""

    @property
    def immutable(self) -> bool:
        """Whether values cannot be changed, so that callers may share one; otherwise each gets its own."""

    def encode(self, value: V) -> bytes:
        """Return the value as bytes.

        :raises InvalidValueError: if it has no encoding.
        """

    def decode(self, data: bytes) -> V:
        """Return the value.

        :raises ValueError: if ``data`` is no such encoding; the entry is then discarded as corrupt.
        """


class JSONCodec:
    """Values that JSON can express. What comes back is what JSON makes of it: tuples return as lists."""

    schema = "json 1"
    immutable = False

    def encode(self, value: Any) -> bytes:
        """Return the value as compact UTF-8 JSON.

        :raises InvalidValueError: if JSON cannot express it, NaN, infinities and lone surrogates included.
        """
        try:
            return _encode(value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(f"the value cannot be stored as JSON: {error}") from None

    def decode(self, data: bytes) -> Any:
        """Return the value.

        :raises ValueError: if ``data`` is not JSON.
        """
        try:
            text = data.decode()
            value, end = _decode(text)
            return value if end == len(text) else json.loads(data)
        except RecursionError:
            raise ValueError("the value is nested too deeply") from None


class BytesCodec:
    """Values that are bytes already."""

    schema = "bytes 1"
    immutable = True

    def encode(self, value: bytes) -> bytes:
        """Return the bytes themselves.

        :raises InvalidValueError: if the value is not bytes.
        """
        if not isinstance(value, bytes):
            raise InvalidValueError(f"this cache stores bytes, not {type(value).__name__}")
        return value

    def decode(self, data: bytes) -> bytes:
        """Return the bytes themselves."""
        return data


def copy_of(value: Any) -> Optional[bytes]:
    """Return bytes of which :func:`copied` makes a value that was decoded from JSON again, or None if it lies too deep.

    That takes a quarter to a tenth of the time of decoding it. For copies within a process: nothing checks such bytes.
    """
    try:
        return marshal.dumps(value, _COPY_FORMAT)
    except ValueError:
        return None


copied = marshal.loads
