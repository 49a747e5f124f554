"""One Memcached server: the client's pooled verbs, and a wire of our own for what the client cannot do.

The client keeps only the last part of a long reply to a raw command, so listing items and pipelining go over
our own connections, with the same address and time-outs. This is also the one place where the client's errors
and the socket's become ours.
"""

from __future__ import annotations

import math
import re
import socket
import time
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import quote

from pymemcache.client.base import PooledClient
from pymemcache.exceptions import MemcacheError, MemcacheUnexpectedCloseError

from ._memcached_health import Health

__all__ = ["Item", "Server"]

_BATCH = 100
_NAME = re.compile(rb"[a-z0-9._-]{1,128}\Z")  # as the server writes them; others it encodes
_META = re.compile(rb"^HD k(\S+) s(\d+) t(-?\d+) c(\d+)\r?\n", re.MULTILINE)
_ERROR = re.compile(rb"^(?:CLIENT_|SERVER_)?ERROR.*", re.MULTILINE)
_CHUNK = 1 << 16
_PIECE = 1 << 14
"""Bytes of a listing that are taken apart before other threads have their turn: a millisecond's work or less."""
_PAUSE = 0.0001
_MOST_AT_ONCE = 1 << 20
_LONGEST_LINE = 65536
_ANSWER_FACTOR, _LISTING_FACTOR = 10, 150
"""Of a server's patience, what a whole answer may take, and a whole listing: a server that talks without end is cut."""

_CLOSED_BY_SERVER = (MemcacheUnexpectedCloseError, ConnectionResetError, BrokenPipeError)


class Item(NamedTuple):
    """A live item, as the server describes it.

    :param name: the full key.
    :param length: the length of the stored value in bytes.
    :param ttl: the remaining seconds, or None.
    :param cas: the identity of this write.
    :param last_use: when the server saw it written or used, in whole seconds since the epoch.
    """

    name: str
    length: int
    ttl: Optional[int]
    cas: int
    last_use: int


class Server:
    """A server by its address. Thread-safe; connects when it is first used.

    :param connect_timeout: seconds that connecting may take.
    :param timeout: seconds that an answer may take.
    :param patience: seconds that a listing may take to begin, or others to make way.
    :param threads: how many threads may be inside at once.
    """

    def __init__(
        self, host: str, port: int, *, connect_timeout: float, timeout: float, patience: float, threads: int
    ) -> None:
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.patience = patience
        self._timeout = timeout
        self.health = Health(self.address)
        self._where = (host, port)
        self._connect_timeout = connect_timeout
        self._threads = threads
        self._client = PooledClient(
            self._where,
            connect_timeout=connect_timeout,
            timeout=timeout,
            no_delay=True,
            socket_module=_Sockets(_ANSWER_FACTOR * patience),
            # An unanswered write that fails leaves its error to the next command.
            default_noreply=False,
        )
        self._wires: List[_Wire] = []

    def close(self) -> None:
        """Close every connection."""
        self._client.close()
        while self._wires:
            self._wires.pop().close()

    def call(self, verb: str, *arguments: Any, repeatable: bool = True, **options: Any) -> Any:
        """Return what the client's method ``verb`` returns.

        :param repeatable: whether the command may be sent again if an idle connection turns out to be closed.
        :raises BackendUnavailableError: if the server does not answer, or answers with an error.
        """
        # After a restart of the server each idle connection fails once.
        retries = self._threads if repeatable else 0
        with self._translated(self._timeout):
            while True:
                try:
                    return getattr(self._client, verb)(*arguments, **options)
                except _CLOSED_BY_SERVER:
                    if not retries:
                        raise
                    retries -= 1

    def settings(self) -> Dict[str, str]:
        """Return the server's settings by name."""
        with self._wire(self.patience) as wire:
            wire.send(b"stats settings\r\n")
            rows = [line.split(b" ", 2) for line in wire.lines_until(b"END")]
            return {row[1].decode(): row[2].decode() for row in rows if len(row) == 3 and row[0] == b"STAT"}

    def read(self, names: Sequence[str]) -> Dict[str, bytes]:
        """Return the values of those items that are there, in one round trip.

        :raises BackendUnavailableError: if the server does not answer, or answers with an error.
        """
        with self._wire(self._timeout, _ANSWER_FACTOR) as wire:
            wire.send(f"get {' '.join(names)}\r\n".encode())
            return dict(wire.values(len(names)))

    def items(self, prefix: str) -> List[Item]:
        """Return what :meth:`lists` yields, in one list."""
        return [item for items in self.lists(prefix) for item in items]

    def lists(self, prefix: str) -> Iterator[List[Item]]:
        """Yield the live items whose names start with ``prefix``, some at a time, without using them. Not a snapshot.

        Names that no entry can have are left out: bookkeeping, which goes on with an exclamation mark, and what
        somebody else planted. A server takes names with line ends in them, which would be commands in ours.

        :raises BackendUnavailableError: also if the server's crawler is switched off, or busy for too long.
        """
        with self._wire(self.patience) as wire:
            # There may be any number of other namespaces, so a line of theirs is not taken apart.
            line = re.compile(
                rb"^key=%s(\S*)(?: .*?\bla=(\d+))?" % re.escape(quote(prefix, safe="").encode()), re.MULTILINE
            )
            last_uses: Dict[bytes, int] = {}
            for text in self._dump(wire):
                last_uses.update((name, int(use)) for name, use in line.findall(text) if _NAME.match(name))
                _step_aside()
            start = prefix.encode()
            for names in _batches(list(last_uses)):
                # u: not a use; q: say nothing of what is gone; mn: the end.
                wire.send(b"".join([b"mg %s%s k s t c u q\r\n" % (start, name) for name in names]) + b"mn\r\n")
                answers = b"".join(wire.texts_until(b"MN", len(names) * _LONGEST_LINE))
                found = _META.findall(answers)
                if len(found) != answers.count(b"\n"):
                    raise ValueError("not what was asked for")
                yield [
                    Item(name.decode(), int(length), _ttl(ttl), int(cas), last_uses[name[len(start) :]])
                    for name, length, ttl, cas in found
                ]
                _step_aside()

    def delete_unchanged(self, items: Sequence[Item]) -> List[bool]:
        """Delete those of ``items`` that were not written since; return for each whether it was deleted."""
        # Storing under a condition with a life that is over deletes.
        commands = [b"cas %s 0 -1 0 %d\r\n\r\n" % (item.name.encode(), item.cas) for item in items]
        return [line == b"STORED" for line in self._pipelined(commands)]

    def delete_all(self, names: Sequence[str]) -> List[bool]:
        """Delete items by name; return for each whether it was there."""
        return [line == b"DELETED" for line in self._pipelined([b"delete %s\r\n" % n.encode() for n in names])]

    def use(self, names: Sequence[str]) -> None:
        """Make the server notice a use of each item now."""
        # A read makes itself known to the server once or twice, then no more. To append nothing rewrites the
        # item in place: value and life stay, the time of the last use is new.
        self._pipelined([b"append %s 0 0 0\r\n\r\n" % name.encode() for name in names])

    def _pipelined(self, commands: Sequence[bytes]) -> List[bytes]:
        replies: List[bytes] = []
        with self._wire(self._timeout) as wire:
            for batch in _batches(commands):
                wire.send(b"".join(batch))
                replies += [wire.line() for _ in batch]
        return replies

    def _dump(self, wire: _Wire) -> Iterator[bytes]:
        """Yield whole lines, one on every item of the server. The server runs one such listing at a time."""
        deadline = time.monotonic() + self.patience
        # By the hash table no item is missed that moves between the lists of recency meanwhile; servers
        # before 1.6 list by these.
        kind = b"hash"
        while True:
            wire.send(b"lru_crawler metadump %s\r\n" % kind)
            first = wire.line()
            if first.startswith(b"key="):
                yield first + b"\n"
                yield from wire.texts_until(b"END")
                return
            if first == b"END":
                return
            if not first.startswith(b"BUSY"):
                if kind == b"all":
                    raise MemcacheError(f"the crawler answers {first[:60].decode('latin-1')!r}")
                kind = b"all"
            elif time.monotonic() > deadline:
                raise MemcacheError("its crawler stays busy")
            else:
                time.sleep(0.005)

    @contextmanager
    def _wire(self, timeout: float, factor: int = _LISTING_FACTOR) -> Iterator[_Wire]:
        with self._translated(timeout):
            wire = self._pop_wire() or _Wire(self._where, self._connect_timeout)
            try:
                wire.wait_for(timeout, factor * self.patience)
                yield wire
            except BaseException:
                wire.close()
                raise
            self._wires.append(wire)

    def _pop_wire(self) -> Optional[_Wire]:
        while True:
            try:
                wire = self._wires.pop()
            except IndexError:
                return None
            if wire.is_quiet():
                return wire
            wire.close()

    @contextmanager
    def _translated(self, timeout: float) -> Iterator[None]:
        self.health.admit()
        started = time.monotonic()
        try:
            yield
        except socket.timeout as error:
            reason = (
                f"Memcached at {self.address} did not answer within {timeout:g} s: "
                "check the server and the network, or raise socket_timeout"
            )
            raise self.health.failed(reason, time.monotonic() - started) from error
        except (MemcacheError, OSError) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            reason = f"Memcached at {self.address} is not available ({cause}): check that it runs and has memory left"
            if isinstance(error, (OSError, MemcacheUnexpectedCloseError)):
                raise self.health.failed(reason, time.monotonic() - started) from error
            self.health.worked()  # an error is an answer
            raise self.health.error(reason) from error
        except (KeyError, IndexError, ValueError) as error:
            reason = f"Memcached at {self.address} answers what Memcached does not: check the address"
            raise self.health.failed(reason, time.monotonic() - started) from error
        else:
            self.health.worked()


class _Sockets:
    """The module ``socket``, but for sockets on which an answer has to come to an end.

    :param seconds: from the command to the end of its answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def socket(self, *arguments: Any) -> socket.socket:
        """Return a socket that is not connected yet."""
        made = _Socket(*arguments)
        made.seconds = self._seconds
        return made


class _Socket(socket.socket):
    seconds = 0.0
    _end = 0.0

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._end = time.monotonic() + self.seconds
        super().sendall(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if time.monotonic() > self._end:
            raise socket.timeout("its answer does not end")
        return super().recv(size, flags)


class _Bytes(RawIOBase):
    """What comes in on a socket, until ``end``, a moment of :func:`time.monotonic`."""

    def __init__(self, source: socket.socket) -> None:
        self._socket = source
        self.end = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Each byte may come in time, and the last one never.
        if time.monotonic() > self.end:
            raise MemcacheUnexpectedCloseError("its answer does not end")
        return self._socket.recv_into(buffer)


class _Wire:
    """A connection that sends bytes and reads lines."""

    def __init__(self, where: Any, connect_timeout: float) -> None:
        self._socket = socket.create_connection(where, connect_timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bytes = _Bytes(self._socket)
        self._reader = BufferedReader(self._bytes, _CHUNK)

    def wait_for(self, timeout: float, seconds: float) -> None:
        """From now on let an answer take ``timeout`` seconds to begin and to go on, and ``seconds`` to end."""
        self._socket.settimeout(timeout)
        self._bytes.end = time.monotonic() + seconds

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def line(self) -> bytes:
        line: bytes = self._reader.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            if len(line) == _LONGEST_LINE:
                raise ValueError("a line that does not end")
            raise MemcacheUnexpectedCloseError("the server closed the connection")
        return line.rstrip(b"\r\n")

    def lines_until(self, end: bytes) -> Iterator[bytes]:
        while True:
            line = self.line()
            if line == end:
                return
            if line.startswith((b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")):
                raise MemcacheError(line.decode("latin-1"))
            yield line

    def texts_until(self, end: bytes, most: float = math.inf) -> Iterator[bytes]:
        """Yield the same as :meth:`lines_until`, as many lines at once as there are, with their ends.

        :param most: how many bytes may come.
        """
        rest = b""
        while True:
            data: bytes = self._reader.read1(_PIECE)
            if not data:
                raise MemcacheUnexpectedCloseError("the server closed the connection")
            most -= len(data)
            if most < 0:
                raise ValueError("more than was asked for")
            text, line_end, rest = (rest + data).rpartition(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise ValueError("a line that does not end")
            text += line_end
            error = _ERROR.search(text) if b"ERROR" in text else None
            if error is not None:
                raise MemcacheError(error.group().decode("latin-1"))
            last = text.rfind(b"\n", 0, -1) + 1
            if text[last:].rstrip(b"\r\n") == end and text:
                yield text[:last]
                return
            yield text

    def values(self, most: int) -> Iterator[Tuple[str, bytes]]:
        """Yield names and values of the reply to a ``get`` of so many names."""
        for line in self.lines_until(b"END"):
            most -= 1
            if most < 0:
                raise ValueError("more than was asked for")
            kind, name, _, length = line.split()
            data = self._take(int(length) + 2)
            if kind != b"VALUE" or not data.endswith(b"\r\n"):
                raise ValueError("not a value")
            yield name.decode(), data[:-2]

    def _take(self, length: int) -> bytes:
        parts = []
        while length > 0:
            part = self._reader.read(min(length, _MOST_AT_ONCE))  # memory is taken before there is anything in it
            if not part:
                raise MemcacheUnexpectedCloseError("the server closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def is_quiet(self) -> bool:
        """Whether nothing came in since the last reply, neither data nor the end of the connection."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


def _ttl(text: bytes) -> Optional[int]:
    return None if text.startswith(b"-") else int(text)


def _step_aside() -> None:
    """Let those in who wait for the interpreter's lock. To give it up is not enough: they need a moment to take it.

    A listing is long work, and they would be let in only every few milliseconds.
    """
    time.sleep(_PAUSE)


def _batches(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[start : start + _BATCH] for start in range(0, len(values), _BATCH))
