"""The Memcached backend: a shared cache on one or several servers that hold everything in memory.

Keys go to the servers by rendezvous hashing; each server is a partition of the limit. The servers themselves
are the truth of the account: ``usage`` and ``scan`` list their items. How ``max_bytes`` holds without listing
on every write stands in :mod:`._memcached_account`.

An entry is stored as 8 random bytes, its version, and the value. Every process on a namespace must give the
same servers, and a ``max_bytes`` if any of them does: a process without one writes past the account.
The servers need their crawler, which is on by default since 1.5. What a server evicts or loses by itself is
simply not there any more. The whole of one server must hold more than its share of the limit, or the server
evicts first, by its own rules.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Dict, Hashable, Iterator, List, Mapping, Optional, Sequence, Tuple

from claude_force_cache import (
    BackendClosedError,
    BackendPlugin,
    BackendSettings,
    BackendUnavailableError,
    Capabilities,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    InvalidOptionError,
    InvalidURLError,
    Option,
    PartlyUnavailableError,
    SyncBackend,
    Usage,
    hookimpl,
    parse_duration,
)

if TYPE_CHECKING:
    from ._memcached_server import Item, Server

__all__ = ["MemcachedBackend", "claude_force_cache_backend"]

_VERSION_BYTES = 8
_DAY = 24 * 60 * 60
# Expiry is a date in 32 signed bits, so no life may reach the year 2038.
_MAX_TTL = 365.0 * _DAY
# Above this the server takes an expiry as a date.
_MAX_RELATIVE = 30 * _DAY
_ITEM_BYTES = 1024 * 1024
# What the server adds to the key and the value of an item.
_ITEM_OVERHEAD = 59
_LONGEST_KEY = 128
_LONGEST_NAMESPACE = 64
# Seconds that connecting and an answer may take. Several servers come to their turns within the budget of a look-up.
_TIMEOUTS = (1.0, 2.0)
_TIMEOUTS_OF_SEVERAL = (0.1, 0.1)
_REMEMBERED_USES = 10_000
_ATTEMPTS = 20


class MemcachedBackend(SyncBackend):
    """Entries on Memcached servers. See the module's docstring for what they should look like.

    Capabilities are exact after ``open``, which asks the servers for their largest item.

    :param settings: where the servers are, the namespace, the limit, and the plugin's options.
    :raises InvalidURLError: if the URL has a path or a login, or names a server twice.
    :raises InvalidOptionError: if a clock is given; entries expire by the servers' clocks.
    """

    def __init__(self, settings: BackendSettings) -> None:
        from pymemcache.client.rendezvous import RendezvousHash

        from ._memcached_account import Account
        from ._memcached_server import Server

        options = {option.name: option.default for option in _OPTIONS}
        options.update(settings.options)
        if settings.clock is not None:
            raise InvalidOptionError("memcached takes no clock: entries expire by the servers' own")
        self.threads = options["pool_size"]
        self._prefix = f"cfc:{settings.namespace}:"
        self._servers: Dict[str, Server] = {}
        hosts = _hosts(settings)
        connect_timeout, timeout = _TIMEOUTS if len(hosts) == 1 else _TIMEOUTS_OF_SEVERAL
        for host, port in hosts:
            server = Server(
                host,
                port,
                connect_timeout=options["connect_timeout"] or connect_timeout,
                timeout=options["socket_timeout"] or timeout,
                patience=options["socket_timeout"] or _TIMEOUTS[1],
                threads=self.threads,
            )
            self._servers[server.address] = server
        health = [server.health for server in self._servers.values()]
        for server in self._servers.values():
            server.health.join(health)
        self._unprepared = set(self._servers.values())
        # To find the one of several costs more than the rest of a look-up in the thread.
        self._lone = next(iter(self._servers.values())) if len(self._servers) == 1 else None
        self._ring = RendezvousHash(list(self._servers))
        self._limit = None if settings.max_bytes is None else settings.max_bytes // len(self._servers)
        self._accounts: Dict[str, Account] = {}
        if self._limit is not None:
            self._accounts = {
                address: Account(server, self._prefix, _VERSION_BYTES, self._limit, options["eviction_slack"])
                for address, server in self._servers.items()
            }
        self._recency: float = options["recency"]
        self._uses: Dict[str, float] = {}
        self._is_open = False
        self._slack: float = options["eviction_slack"]
        self._describe(_ITEM_BYTES)

    def __repr__(self) -> str:
        return f"<MemcachedBackend at {', '.join(self._servers)}>"

    def open(self) -> None:
        """Ask each server for its largest item, and bring each within its limit. See :meth:`Backend.open`.

        Of several servers one suffices; the others are prepared when they are first used.
        """
        self._is_open = True
        self._unprepared.update(self._servers.values())
        try:
            self._describe(min(self._largest_items()))
        except BaseException:
            self.close()
            raise

    def _largest_items(self) -> List[int]:
        largest, failure = [], None
        for server in self._answering():
            try:
                largest.append(self._prepare(server))
            except PartlyUnavailableError as error:
                failure = error
        if failure is not None and not largest:
            raise failure
        return largest

    def _answering(self) -> List[Server]:
        """Return the servers that answer.

        :raises BackendUnavailableError: if none does.
        """
        servers, failure = [], None
        for server in self._servers.values():
            server.health.lift()
            try:
                server.call("version")
                servers.append(server)
            except BackendUnavailableError as error:
                failure = error
        if failure is not None and not servers:
            raise failure
        return servers

    def _prepare(self, server: Server) -> int:
        """Bring a server within its limit, and return how large its items may be."""
        largest = int(server.settings()["item_size_max"])
        if self._limit is None:
            # Writes without a limit are not counted, so whoever comes with one has to recount.
            server.call("delete", self._prefix + "!account")
        else:
            self._accounts[server.address].open()
        self._unprepared.discard(server)
        return largest

    def close(self) -> None:
        """Close every connection. See :meth:`Backend.close`."""
        self._is_open = False
        for server in self._servers.values():
            server.close()

    def get(self, key: str) -> Optional[Entry]:
        """See :meth:`Backend.get`."""
        server, name = self._place(key)
        return self._read(server, [name]).get(key)

    def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """See :meth:`Backend.get_many`. One round trip for each server, and one more to make uses known.

        What belongs to a server that does not answer is left out, as long as another one does.
        """
        found: Dict[str, Entry] = {}
        for server, names in self._by_server(dict.fromkeys(keys)).items():
            try:
                found.update(self._read(server, names))
            except PartlyUnavailableError:
                continue
        return found

    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """See :meth:`Backend.set`."""
        server, name = self._place_to_write(key)
        refused = self._refusal(key, value)
        if refused is not None:
            server.call("delete", name)
            raise refused
        blob = os.urandom(_VERSION_BYTES) + value
        account = self._accounts.get(server.address)
        if account is None:
            server.call("set", name, blob, expire=_expiry(ttl))
            return 0
        evicted = account.store(name, blob, _expiry(ttl), only_if_absent=False)
        self._remember([name])
        return evicted or 0

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """See :meth:`Backend.add`."""
        server, name = self._place_to_write(key)
        # Room is made only for an entry that is going to be stored.
        if self.get(key) is not None:
            return False
        refused = self._refusal(key, value)
        if refused is not None:
            raise refused
        blob = os.urandom(_VERSION_BYTES) + value
        account = self._accounts.get(server.address)
        if account is None:
            return bool(server.call("add", name, blob, expire=_expiry(ttl), repeatable=False))
        return account.store(name, blob, _expiry(ttl), only_if_absent=True) is not None

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.delete`."""
        server, name = self._place(key)
        if version is None:
            return bool(server.call("delete", name, repeatable=False))
        return self._rewrite(server, name, version, keep=False, expire=-1)

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.touch`. With ``version``, the value travels to here and back."""
        server, name = self._place(key)
        if version is not None:
            return self._rewrite(server, name, version, keep=True, expire=_expiry(ttl))
        touched = bool(server.call("touch", name, _expiry(ttl)))
        if touched:
            self._use(server, [name])
        return touched

    def scan(self) -> Iterator[EntryInfo]:
        """See :meth:`Backend.scan`. Lists one server after the other; lives are in whole seconds."""
        self._check_open_all()
        return self._scan()

    def usage(self) -> Usage:
        """See :meth:`Backend.usage`. Lists every item of the servers, those of other namespaces too."""
        self._check_open_all()
        entries = total = 0
        for server in self._servers.values():
            sizes = self._sizes(server)
            for _ in range(_ATTEMPTS):
                if self._limit is None or sum(sizes) <= self._limit:
                    break
                # Entries that came while others went were counted together, or a writer is about to make room.
                self._accounts[server.address].make_room("", 0)
                sizes = self._sizes(server)
            entries, total = entries + len(sizes), total + sum(sizes)
        return Usage(entries, total)

    def clear(self) -> int:
        """See :meth:`Backend.clear`. What can be reached is cleared, also if a server cannot."""
        self._check_open_all()
        deleted, failure = 0, None
        for server in self._servers.values():
            try:
                deleted += sum(server.delete_all([item.name for item in server.items(self._prefix)]))
                # A listing goes through what every namespace left. Whoever misses the counter counts anew.
                server.call("delete", self._prefix + "!account")
            except PartlyUnavailableError as error:
                failure = error
        if failure is not None:
            raise failure
        return deleted

    def ping(self) -> None:
        """See :meth:`Backend.ping`. One server that answers suffices."""
        self._check_open()
        self._answering()

    def _read(self, server: Server, names: Sequence[str]) -> Dict[str, Entry]:
        blobs = server.read(names)
        self._use(server, list(blobs))
        start = len(self._prefix)
        return {name[start:]: Entry(blob[_VERSION_BYTES:], blob[:_VERSION_BYTES]) for name, blob in blobs.items()}

    def _scan(self) -> Iterator[EntryInfo]:
        for server in self._servers.values():
            for item in server.items(self._prefix):
                yield EntryInfo(item.name[len(self._prefix) :], self._size(item), item.ttl)

    def _sizes(self, server: Server) -> List[int]:
        return [self._size(item) for item in server.items(self._prefix)]

    def _size(self, item: Item) -> int:
        # A stranger's item may be too short for a version.
        return len(item.name) - len(self._prefix) + max(0, item.length - _VERSION_BYTES)

    def _rewrite(self, server: Server, name: str, version: Hashable, *, keep: bool, expire: int) -> bool:
        """Write the entry anew, with its value or without, if it is still the one of ``version``."""
        for _ in range(_ATTEMPTS):
            blob, cas = server.call("gets", name)
            if blob is None or blob[:_VERSION_BYTES] != version:
                return False
            done = server.call("cas", name, blob if keep else b"", cas, expire=expire, repeatable=False)
            if done:
                return True
            # Gone, written anew, or the same entry after somebody's use of it: look again.
        raise BackendUnavailableError(f"Memcached at {server.address}: an entry is used too fast to be changed")

    def _use(self, server: Server, names: Sequence[str]) -> None:
        """Make uses known to the server, where the last one is longer ago than ``recency``."""
        if self._limit is None:
            return
        now = time.monotonic()
        due = [name for name in names if now - self._uses.get(name, -math.inf) >= self._recency]
        if due:
            server.use(due)
            self._remember(due)

    def _remember(self, names: Sequence[str]) -> None:
        if len(self._uses) + len(names) > _REMEMBERED_USES:
            # What is forgotten is made known once more than needed.
            self._uses = {}
        self._uses.update(dict.fromkeys(names, time.monotonic()))

    def _place(self, key: str) -> Tuple[Server, str]:
        self._check_open()
        return self._lone or self._servers[self._ring.get_node(key)], self._prefix + key

    def _place_to_write(self, key: str) -> Tuple[Server, str]:
        server, name = self._place(key)
        if server in self._unprepared:
            self._prepare(server)
        return server, name

    def _by_server(self, keys: Mapping[str, object]) -> Dict[Server, List[str]]:
        placed: Dict[Server, List[str]] = defaultdict(list)
        for key in keys:
            server, name = self._place(key)
            placed[server].append(name)
        return placed

    def _refusal(self, key: str, value: bytes) -> Optional[EntryTooLargeError]:
        size = len(key) + len(value)
        if self._limit is not None and size > self._limit:
            return EntryTooLargeError(size, self._limit)
        largest = self.capabilities.max_value_bytes
        if largest is not None and len(value) > largest:
            return EntryTooLargeError(size, len(key) + largest)
        return None

    def _describe(self, item_bytes: int) -> None:
        self.capabilities = _capabilities(item_bytes, self._recency, self._slack, len(self._servers))

    def _check_open_all(self) -> None:
        """Check as :meth:`_check_open`, for a verb that needs every server, also one that failed a moment ago."""
        self._check_open()
        for server in self._servers.values():
            server.health.lift()

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendClosedError(f"the cache in Memcached at {', '.join(self._servers)} is closed: open it")


def _capabilities(item_bytes: int, recency: float, slack: float, servers: int) -> Capabilities:
    # The largest value that fits under the longest key of the longest namespace.
    room = item_bytes - _ITEM_OVERHEAD - len("cfc::") - _LONGEST_NAMESPACE - _LONGEST_KEY - _VERSION_BYTES
    return Capabilities(
        # A started second counts whole, and two more, since the server's own second may be nearly over and be
        # followed by the one after the next; a date is a second less certain.
        ttl_resolution=4.0,
        max_ttl=_MAX_TTL,
        max_value_bytes=room,
        # The server notes uses in whole seconds.
        recency=recency + 1.0,
        eviction_slack=slack,
        partitions=servers,
        constant_time_usage=False,
        injectable_clock=False,
    )


def _expiry(ttl: Optional[float]) -> int:
    """Return what the server takes as expiry: relative seconds for a month, a date beyond, 0 for never."""
    if ttl is None:
        return 0
    ttl = min(ttl, _MAX_TTL)
    # The server's clock ticks every second or a little more, so that now and then it steps by two.
    seconds = math.ceil(ttl) + 2
    return seconds if seconds <= _MAX_RELATIVE else math.ceil(time.time() + ttl) + 2


def _hosts(settings: BackendSettings) -> List[Tuple[str, int]]:
    url = settings.url
    if url.path.strip("/") or url.username is not None or url.password is not None:
        raise InvalidURLError(f"{url}: a memcached URL has neither login nor path; expected memcached://host:port,...")
    hosts = [(host, port or 11211) for host, port in url.hosts] or [("localhost", 11211)]
    if len(set(hosts)) < len(hosts):
        raise InvalidURLError(f"{url} names a server twice")
    return hosts


_OPTIONS = (
    Option(
        "socket_timeout",
        parse_duration,
        None,
        "seconds that a server may take to answer; 2s, with several servers 100ms",
        minimum=0.001,
        maximum=3600,
    ),
    Option(
        "connect_timeout",
        parse_duration,
        None,
        "seconds that connecting may take; 1s, with several servers 100ms",
        minimum=0.001,
        maximum=3600,
    ),
    Option("pool_size", int, 4, "threads, and so connections to each server", minimum=1, maximum=1000),
    Option("recency", parse_duration, 60.0, "seconds between uses of an entry that the server is told of", minimum=0),
    Option(
        "eviction_slack", float, 0.05, "share of max_bytes that one eviction may free in advance", minimum=0, maximum=1
    ),
)


def _create(settings: BackendSettings) -> MemcachedBackend:
    return MemcachedBackend(settings)


@hookimpl
def claude_force_cache_backend() -> BackendPlugin:
    """Describe the Memcached backend."""
    return BackendPlugin(
        create=_create,
        url="memcached://host[:port][,host[:port]...]",
        summary="one cache in the memory of several servers; bounded values, exact account by listing",
        options=_OPTIONS,
        capabilities=_capabilities(_ITEM_BYTES, 60.0, 0.05, 1),
        client="pymemcache",
        install="pip install 'claude-force-cache[memcached]'",
        api_version=1,
    )
