"""Exchanges: an HTTP request for a message, and the reply to it, whatever library carries them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Awaitable, Callable, Dict, Iterable, List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from typing_extensions import Protocol

from claude_force_cache import CacheEntry, Digest, InvalidKeyError, KeyPart

from ._answer import EVENT_STREAM, Answer, Parts
from ._request import MESSAGES_PATH, account_key, describe, fixed_digest, significant_headers

__all__ = [
    "CONTROL_HEADER",
    "Body",
    "Headers",
    "MarkedBody",
    "Question",
    "Response",
    "Send",
    "WholeBody",
    "media_type",
    "read_whole",
    "without_encoding",
]

CONTROL_HEADER = "x-claude-force-cache"
"""Of a request: how it uses the cache. It is not sent on. Of a response: what the cache had to do with it."""

MARK = "claude_force_cache"
"""The field of ``usage`` that says the same, if it is wanted."""

Headers = List[Tuple[str, str]]

_ENCODING = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_END_OF_EVENT = re.compile(rb"\r?\n\r?\n")


class Body(Protocol):
    """The body of a reply, content encodings undone."""

    async def next(self) -> Optional[bytes]:
        """Return the next piece, or None at the end."""

    async def close(self) -> None:
        """Release what it comes from. Idempotent."""


@dataclass
class Response:
    """A reply: its status, its headers, its body as it comes, and what is known of where it comes from.

    :param entry: the entry that it is a replay of.
    :param answer: the answer that a call of its own brought.
    :param follows: whether it comes from the call of another request, which is under way.
    """

    status: int
    headers: Headers
    body: Body
    entry: Optional[CacheEntry[Answer]] = field(default=None, repr=False)
    answer: Optional[Answer] = field(default=None, repr=False)
    follows: bool = False


Send = Callable[[], Awaitable[Response]]
"""Sends the request on, and returns the reply."""


class WholeBody:
    """A body that is there already."""

    def __init__(self, data: bytes) -> None:
        self._data: Optional[bytes] = data

    async def next(self) -> Optional[bytes]:
        """Return all of it, and then None."""
        data, self._data = self._data, None
        return data or None

    async def close(self) -> None:
        """Do nothing."""


class MarkedBody:
    """A body whose ``usage`` says that it came out of the cache, in the field :data:`MARK`.

    :param body: a message, or the event stream of one, whose first event is then altered.
    """

    def __init__(self, body: Body, content_type: str) -> None:
        self._body = body
        self._streamed = content_type == EVENT_STREAM
        self._marked = False

    async def next(self) -> Optional[bytes]:
        """Return the next piece: the first whole event, or the whole message, at first."""
        if self._marked:
            return await self._body.next()
        self._marked = True
        seen = b""
        while True:
            piece = await self._body.next()
            seen += piece or b""
            end = _END_OF_EVENT.search(seen) if self._streamed else None
            if end is not None:
                return _mark_event(seen[: end.start()]) + seen[end.start() :]
            if piece is None:
                return (seen if self._streamed else _mark(seen)) or None

    async def close(self) -> None:
        """Close the body."""
        await self._body.close()


def _mark_event(event: bytes) -> bytes:
    return b"\n".join(b"data: " + _mark(line[5:]) if line.startswith(b"data:") else line for line in event.splitlines())


def _mark(data: bytes) -> bytes:
    try:
        table = json.loads(data)
    except ValueError:
        return data
    message = table.get("message", table) if isinstance(table, dict) else None
    if not isinstance(message, dict) or not isinstance(message.get("usage"), dict):
        return data
    message["usage"][MARK] = "hit"
    return json.dumps(table, separators=(",", ":")).encode()


async def read_whole(body: Body) -> bytes:
    """Return all of a body, and close it."""
    pieces: List[bytes] = []
    try:
        while True:
            piece = await body.next()
            if piece is None:
                return b"".join(pieces)
            pieces.append(piece)
    finally:
        await body.close()


def media_type(headers: Iterable[Tuple[str, str]]) -> str:
    """Return the media type that headers name, in lower case, without parameters; empty if they name none."""
    found = next((value for name, value in headers if name.lower() == "content-type"), "")
    return found.partition(";")[0].strip().lower()


def without_encoding(headers: Iterable[Tuple[str, str]]) -> Headers:
    """Return headers without those on how the body was encoded, which it no longer is."""
    return [(name, value) for name, value in headers if name.lower() not in _ENCODING]


@dataclass(frozen=True)
class Question:
    """A request for a message, as far as the cache goes by it.

    :param url: the whole URL.
    :param headers: the significant ones.
    :param table: the body.
    :param key: the key of the answer.
    :param streamed: whether the reply is to be an event stream.
    :param mode: what :data:`CONTROL_HEADER` says, or None.
    :param account: what identifies the account, or None. It holds the credentials.
    :param api_version: the ``anthropic-version``, or None.
    """

    url: str
    headers: Tuple[Tuple[str, str], ...]
    table: Mapping[str, Any] = field(repr=False)
    key: Tuple[Digest, KeyPart] = field(repr=False)
    streamed: bool
    mode: Optional[str]
    account: Optional[Tuple[str, str]] = field(repr=False)
    api_version: Optional[str]

    @property
    def model(self) -> str:
        """The model that is asked."""
        model = self.table.get("model")
        return model if isinstance(model, str) else ""

    @property
    def parts(self) -> Parts:
        """What the request consists of."""
        return describe(self.url, self.headers, self.table)

    @classmethod
    def read(cls, method: str, url: str, headers: Iterable[Tuple[str, str]], body: bytes) -> Optional[Question]:
        """Return the question that an HTTP request asks, or None if it does not ask for a message."""
        if method.upper() != "POST" or not urlsplit(url).path.endswith(MESSAGES_PATH):
            return None
        try:
            table: Any = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(table, dict) or not isinstance(table.get("messages"), list):
            return None
        headers = list(headers)
        named: Mapping[str, str] = {name.lower(): value for name, value in headers}
        significant = significant_headers(headers)
        fixed: Dict[str, Any] = {name: value for name, value in table.items() if name != "messages"}
        try:
            first = fixed_digest(url, significant, fixed)
        except InvalidKeyError:
            return None
        return cls(
            url=url,
            headers=significant,
            table=table,
            key=(first, table["messages"]),
            streamed=table.get("stream") is True,
            mode=named.get(CONTROL_HEADER),
            account=account_key(named),
            api_version=named.get("anthropic-version"),
        )
