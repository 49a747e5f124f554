"""The Redis backend: one shared cache for many processes and machines, exact in account, limit and order.

Every verb is one round trip, however many entries it names, and every change to an entry changes the account
in the same atomic script (:mod:`._redis_scripts`). Only ``scan``, ``clear``, and an ``open`` or ``usage`` that
finds thousands of entries to remove, go on in bounded steps, so that the server is never held up.

The namespace is split into ``partitions``, each in one hash slot with its own part of the limit. All processes
must give the same number; clear the namespace before changing it.

On a server with ``maxmemory`` choose the policy ``noeviction`` or a ``volatile-`` one. What a volatile policy
evicts is taken off the account by the next ``get``, ``scan`` or ``usage`` that meets it; until then it counts,
so the limit still holds. An ``allkeys-`` policy may in principle evict an index: what it held is then unknown
to the account and removed when it is read. A server that is full refuses writes with an error.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import zlib
from typing import TYPE_CHECKING, AsyncIterator, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple, cast

from claude_force_cache import (
    Backend,
    BackendClosedError,
    BackendPlugin,
    BackendSettings,
    BackendUnavailableError,
    Capabilities,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    ForeignStoreError,
    Option,
    Usage,
    hookimpl,
    parse_boolean,
    parse_duration,
)

from ._redis_scripts import HEADER_BYTES, INDEXES, SCRIPTS, VERSION_BYTES

if TYPE_CHECKING:
    from ._redis_channel import Argument, Channel, Command, Reply

__all__ = ["RedisBackend", "claude_force_cache_backend"]

_MAX_VALUE_BYTES = 512 * 1024 * 1024 - HEADER_BYTES
_FOREVER = struct.pack(">d", float("inf"))


class RedisBackend(Backend):
    """Entries in Redis. See the module's docstring for what a server should look like.

    :param settings: where the server is, the namespace, the limit, and the plugin's options.
    :raises InvalidURLError: if the URL names several servers or no number as database.
    """

    def __init__(self, settings: BackendSettings) -> None:
        from ._redis_channel import Server

        options = {option.name: option.default for option in _OPTIONS}
        options.update(settings.options)
        self._server = Server(settings.url, options)
        self._timeout: float = options["socket_timeout"]
        self._pool_size: int = options["pool_size"]
        self._partitions: int = options["partitions"]
        self._prefixes = [f"cfc:{{{settings.namespace}:{number}}}:" for number in range(self._partitions)]
        self._limit = None if settings.max_bytes is None else settings.max_bytes // self._partitions
        self._clock = settings.clock
        self._channels: Dict[asyncio.AbstractEventLoop, Channel] = {}
        self._lock = threading.Lock()
        self._open = False
        self.capabilities = Capabilities(max_value_bytes=_MAX_VALUE_BYTES, partitions=self._partitions)

    def __repr__(self) -> str:
        return f"<RedisBackend at {self._server}>"

    async def open(self) -> None:
        """Check that the server lets us in, and bring each partition within its limit, in bounded steps."""
        self._open = True
        try:
            await self.ping()
            if self._limit is not None:
                pending = list(range(self._partitions))
                while pending:
                    replies = await self._channel().run(
                        [self._call("trim", number, self._limit) for number in pending], repeatable=True
                    )
                    pending = [number for number, more in zip(pending, replies) if more]
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections of every event loop. See :meth:`Backend.close`."""
        self._open = False
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        here = asyncio.get_running_loop()
        for channel in channels:
            if channel.loop is here:
                await channel.close()
            elif not channel.loop.is_closed():
                channel.loop.call_soon_threadsafe(channel.abort)

    async def get(self, key: str) -> Optional[Entry]:
        """See :meth:`Backend.get`."""
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """See :meth:`Backend.get_many`. One round trip for all, and one more if something is expired or damaged."""
        wanted: Dict[int, List[str]] = {}
        for key in dict.fromkeys(keys):
            wanted.setdefault(self._partition(key), []).append(key)
        commands: List[Command] = []
        for partition, names in wanted.items():
            data = [self._data(partition, name) for name in names]
            commands += [("MGET", *data), self._call("use", partition, *names, data=data)]
        replies = await self._run(commands) if commands else []
        found: Dict[str, Entry] = {}
        over: List[Command] = []
        for (partition, names), blobs, now in zip(wanted.items(), replies[::2], replies[1::2]):
            dead = []
            for name, blob in zip(names, cast("List[Optional[bytes]]", blobs)):
                entry = _entry(blob, float(cast(bytes, now)))
                if entry is not None:
                    found[name] = entry
                elif blob is not None:
                    dead.append(name)
            if dead:
                over.append(self._call("sweep", partition, *dead, data=[self._data(partition, name) for name in dead]))
        if over:
            await self._run(over)
        return found

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """See :meth:`Backend.set`."""
        return await self.set_many({key: (value, ttl)})

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        """See :meth:`Backend.set_many`. One round trip for all."""
        commands: List[Command] = []
        refused: Optional[EntryTooLargeError] = None
        refusals = []
        for key, (value, ttl) in items.items():
            error = self._refusal(key, value)
            refused = refused or error
            refusals.append(error is not None)
            commands.append(self._delete(key, None) if error else self._set(key, value, ttl, only_if_absent=False))
        replies = await self._run(commands) if commands else []
        if refused is not None:
            raise refused
        return sum(cast(int, reply) for reply in replies)

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """See :meth:`Backend.add`."""
        refused = self._refusal(key, value)
        if refused is not None:
            if await self.get(key) is not None:
                return False
            raise refused
        (reply,) = await self._run([self._set(key, value, ttl, only_if_absent=True)], repeatable=False)
        return cast(int, reply) >= 0

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.delete`."""
        (reply,) = await self._run([self._delete(key, version)], repeatable=False)
        return bool(reply)

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.touch`. The version stays the same."""
        partition = self._partition(key)
        data = [self._data(partition, key)]
        command = self._call("touch", partition, key, _optional(ttl), cast(bytes, version or b""), data=data)
        (reply,) = await self._run([command])
        return bool(reply)

    async def scan(self) -> AsyncIterator[EntryInfo]:
        """See :meth:`Backend.scan`. Reads pages of 500; remembers the names that it has yielded."""
        for partition in range(self._partitions):
            # A hash that is resized during the scan may show a row twice.
            seen = set()
            cursor = b"0"
            while True:
                (reply,) = await self._run([self._call("scan", partition, cursor)])
                cursor, *rows = cast("List[bytes]", reply)
                for name, size, ttl in zip(rows[::3], rows[1::3], rows[2::3]):
                    if name not in seen:
                        seen.add(name)
                        yield EntryInfo(name.decode(), int(size), float(ttl) if ttl else None)
                if cursor == b"0":
                    break

    async def usage(self) -> Usage:
        """See :meth:`Backend.usage`. Looks at every entry only after the server evicted some by itself."""
        accounts: Dict[int, Tuple[int, int]] = {}
        checked: Dict[int, bytes] = {}
        while len(accounts) < self._partitions:
            pending = [number for number in range(self._partitions) if number not in accounts]
            replies = await self._run([self._call("usage", n, checked.pop(n, b"")) for n in pending])
            for number, reply in zip(pending, replies):
                more, is_checked, evicted, entries, total = cast("Tuple[int, int, bytes, int, int]", reply)
                if not is_checked:
                    await self._check(number)
                    checked[number] = evicted
                elif not more:
                    accounts[number] = (entries, total)
        return Usage(sum(entries for entries, _ in accounts.values()), sum(size for _, size in accounts.values()))

    async def clear(self) -> int:
        """See :meth:`Backend.clear`. Goes on in steps of a thousand entries."""
        deleted = 0
        pending = list(range(self._partitions))
        while pending:
            replies = await self._run([self._call("clear", number) for number in pending])
            steps = cast("List[Tuple[int, int]]", replies)
            deleted += sum(count for count, _ in steps)
            pending = [number for number, (_, more) in zip(pending, steps) if more]
        return deleted

    async def ping(self) -> None:
        """See :meth:`Backend.ping`."""
        await self._run([("PING",)])

    def _partition(self, key: str) -> int:
        return zlib.crc32(key.encode()) % self._partitions if self._partitions > 1 else 0

    def _data(self, partition: int, key: str) -> str:
        return f"{self._prefixes[partition]}d:{key}"

    def _call(self, script: str, partition: int, *arguments: Argument, data: Sequence[str] = ()) -> Command:
        """Return the command that runs ``script`` on a partition; ``data`` are the data keys it is about."""
        prefix = self._prefixes[partition]
        now = "" if self._clock is None else repr(float(self._clock()))
        keys = [prefix + index for index in INDEXES] + list(data)
        return ("EVALSHA", SCRIPTS[script].sha, len(keys), *keys, prefix + "d:", now, *arguments)

    def _set(self, key: str, value: bytes, ttl: Optional[float], *, only_if_absent: bool) -> Command:
        partition = self._partition(key)
        # The script writes the expiry in, if there is one; the value only passes through.
        blob = b"".join((os.urandom(VERSION_BYTES), _FOREVER, value))
        arguments = (_optional(self._limit), key, blob, _optional(ttl), int(only_if_absent))
        return self._call("set", partition, *arguments, data=[self._data(partition, key)])

    def _delete(self, key: str, version: Optional[Hashable]) -> Command:
        partition = self._partition(key)
        data = [self._data(partition, key)]
        return self._call("delete", partition, key, cast(bytes, version or b""), data=data)

    def _refusal(self, key: str, value: bytes) -> Optional[EntryTooLargeError]:
        size = len(key) + len(value)
        if self._limit is not None and size > self._limit:
            return EntryTooLargeError(size, self._limit)
        if len(value) > _MAX_VALUE_BYTES:
            return EntryTooLargeError(size, len(key) + _MAX_VALUE_BYTES)
        return None

    async def _check(self, partition: int) -> None:
        """Drop the index rows of every entry that the server evicted."""
        cursor = b"0"
        while True:
            (reply,) = await self._run([self._call("scan", partition, cursor)])
            cursor = cast("List[bytes]", reply)[0]
            if cursor == b"0":
                return

    async def _run(self, commands: Sequence[Command], *, repeatable: bool = True) -> List[Reply]:
        try:
            return await self._channel().run(commands, repeatable=repeatable)
        except ForeignStoreError as error:
            # Somebody's key took the place of one of ours since we opened: for the caller, an outage.
            raise BackendUnavailableError(str(error)) from error

    def _channel(self) -> Channel:
        if not self._open:
            raise BackendClosedError(f"the cache in Redis at {self._server} is closed: open it before use")
        loop = asyncio.get_running_loop()
        channel = self._channels.get(loop)
        if channel is None:
            channel = self._server.channel(self._pool_size, self._timeout)
            with self._lock:
                # asyncio.run has closed the sockets of the loops that are gone.
                self._channels = {other: old for other, old in self._channels.items() if not other.is_closed()}
                self._channels[loop] = channel
        return channel


def _entry(blob: Optional[bytes], now: float) -> Optional[Entry]:
    if blob is None or len(blob) < HEADER_BYTES:
        return None
    (expires,) = struct.unpack_from(">d", blob, VERSION_BYTES)
    return Entry(blob[HEADER_BYTES:], blob[:VERSION_BYTES]) if now < expires else None


def _optional(number: Optional[float]) -> str:
    return "" if number is None else repr(number)


_OPTIONS = (
    Option(
        "partitions",
        int,
        1,
        "into how many hash slots the namespace and its limit are split",
        minimum=1,
        maximum=16384,  # as many as a cluster has
    ),
    Option(
        "socket_timeout",
        parse_duration,
        2.0,
        "seconds that one call may take, with connecting",
        minimum=0.001,
        maximum=3600,
    ),
    Option("pool_size", int, 16, "connections per event loop; further calls queue", minimum=1, maximum=10_000),
    Option("tls", parse_boolean, False, "encrypt the connection and verify the server's certificate"),
    Option("tls_ca_file", str, None, "certificates of the authorities to trust, where not the system's"),
    Option("tls_cert_file", str, None, "the client's certificate, where the server asks for one"),
    Option("tls_key_file", str, None, "the key of the client's certificate"),
    Option("socket_path", str, None, "the server's Unix socket, in place of host and port"),
)


def _create(settings: BackendSettings) -> RedisBackend:
    return RedisBackend(settings)


@hookimpl
def claude_force_cache_backend() -> BackendPlugin:
    """Describe the Redis backend."""
    return BackendPlugin(
        create=_create,
        url="redis://[user:password@]host[:port][/database]",
        summary="one cache for many processes and machines; exact LRU and account",
        options=_OPTIONS,
        capabilities=Capabilities(max_value_bytes=_MAX_VALUE_BYTES),
        client="redis",
        install="pip install 'claude-force-cache[redis]'",
        api_version=1,
    )
