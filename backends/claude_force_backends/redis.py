"""The Redis backend: one shared cache for many processes and machines, exact in account, limit and order.

The Redis is a single server, the master of a service that Sentinels watch, or a cluster; Valkey is the same.

Every verb is one round trip, however many entries it names, and every change to an entry changes the account
in the same atomic script (:mod:`._redis_scripts`). Only ``scan``, ``clear``, and an ``open`` or ``usage`` that
finds thousands of entries to remove, go on in bounded steps, so that the server is never held up.

The namespace is split into ``partitions`` (:mod:`._redis_layout`), each in one hash slot with its own part of the
limit. The store remembers how many; who gives no number follows it, who gives another one is refused.

On a server with ``maxmemory`` choose the policy ``noeviction`` or a ``volatile-`` one. What a volatile policy
evicts is taken off the account by the next ``scan`` or ``usage`` that meets it; until then it counts,
so the limit still holds. An ``allkeys-`` policy may in principle evict an index: what it held is then unknown
to the account and removed when it is read. A server that is full refuses writes with an error.
"""

from __future__ import annotations

import asyncio
import math
import os
import struct
import threading
import time
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Hashable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    cast,
)

from claude_force_cache import (
    Backend,
    BackendClosedError,
    BackendPlugin,
    BackendSettings,
    BackendUnavailableError,
    CacheError,
    Capabilities,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    ForeignStoreError,
    InvalidOptionError,
    Option,
    PartlyUnavailableError,
    Usage,
    hookimpl,
    parse_boolean,
    parse_duration,
)

from ._redis_layout import SLOTS, Layout, record_name, slot_of
from ._redis_scripts import HEADER_BYTES, INDEXES, MOST_READS, SCRIPTS, VERSION_BYTES

if TYPE_CHECKING:
    from ._redis_link import Argument, Reply
    from ._redis_router import Outcome, Request, Router
    from ._redis_server import Deployment
    from ._redis_watch import Watch

__all__ = ["RedisBackend", "claude_force_cache_backend"]

_MAX_VALUE_BYTES = 512 * 1024 * 1024 - HEADER_BYTES
_FOREVER = struct.pack(">d", float("inf"))
_PARTITIONS_IN_CLUSTER = 64
_PAGE = 100
_UPKEEP_FACTOR = 30
"""Of the time for one call, what many of them may take that bring nothing."""

_MOST_TURNOVER = 4
"""How many times the limit a scan may list: entries come and go meanwhile, and a hash that grows shows some twice."""


class _Access(NamedTuple):
    """What an event loop reaches the store through."""

    router: Router
    watch: Watch


class _Patience:
    """How long bookkeeping in many round trips may go on and bring nothing. Bounds what a server can claim.

    :param seconds: the longest time between two steps that made progress.
    """

    def __init__(self, seconds: float, where: Deployment) -> None:
        self._seconds = seconds
        self._where = where
        self._end = time.monotonic() + seconds

    def go_on(self, *, progress: bool) -> None:
        """Return if there is time for another step.

        :raises BackendUnavailableError: if there is not.
        """
        now = time.monotonic()
        if progress:
            self._end = now + self._seconds
        elif now > self._end:
            raise self.over()

    def over(self) -> BackendUnavailableError:
        """Return the error for a server that goes on without end."""
        return BackendUnavailableError(
            f"Redis at {self._where} does not come to an end of its entries: try again, or check that it is a Redis"
        )


class RedisBackend(Backend):
    """Entries in Redis. See the module's docstring for what a server should look like.

    :param settings: where the server is, the namespace, the limit, and the plugin's options.
    :raises InvalidURLError: if the URL names several servers without a topology, or no number as database.
    :raises InvalidOptionError: if options do not go together.
    """

    def __init__(self, settings: BackendSettings) -> None:
        from ._redis_router import Request
        from ._redis_server import CLUSTER, Deployment

        self._request_type = Request
        options = {option.name: option.default for option in _OPTIONS}
        options.update(settings.options)
        self._deployment = Deployment(settings.url, options)
        self._timeout: float = options["socket_timeout"]
        self._pool_size: int = options["pool_size"]
        self._in_cluster = self._deployment.topology == CLUSTER
        self._given: Optional[int] = options["partitions"]
        self._repartition: bool = options["repartition"]
        self._namespace = settings.namespace
        self._max_bytes = settings.max_bytes
        self._clock = settings.clock
        self._accesses: Dict[asyncio.AbstractEventLoop, _Access] = {}
        self._lock = threading.Lock()
        self._open = False
        self._lay_out(self._given or (_PARTITIONS_IN_CLUSTER if self._in_cluster else 1))

    def __repr__(self) -> str:
        return f"<RedisBackend at {self._deployment}>"

    def _lay_out(self, partitions: int) -> None:
        self._layout = Layout(self._namespace, partitions)
        self._limit = None if self._max_bytes is None else self._max_bytes // partitions
        self.capabilities = Capabilities(max_value_bytes=_MAX_VALUE_BYTES, partitions=partitions)

    async def open(self) -> None:
        """Check that the server lets us in, and bring each partition within its limit, in bounded steps.

        :raises InvalidOptionError: if the namespace is split into another number of partitions than was given.
        """
        self._open = True
        try:
            await self.ping()
            await self._agree()
            await self._trim()
        except BaseException:
            await self.close()
            raise

    async def _agree(self) -> None:
        """Agree with the store on the number of partitions, or change it."""
        record = record_name(self._namespace)
        slot = slot_of(self._namespace)
        own = self._layout.partitions
        # MGET: what is no text counts as none.
        (reply,) = await self._run([self._request(slot, "MGET", record)])
        if reply == [None]:
            first = [self._request(slot, "SET", record, own, "NX"), self._request(slot, "MGET", record)]
            _, reply = await self._run(first)
        reply = reply[0] if isinstance(reply, list) and reply else None
        recorded = reply.decode("ascii", "replace") if isinstance(reply, bytes) else ""
        if not (recorded.isdigit() and 0 < int(recorded) <= SLOTS):
            # Whoever can write there must not be able to stop a program from starting.
            raise BackendUnavailableError(
                f"{record} in Redis at {self._deployment} is no number of partitions: delete it, the entries stay"
            )
        before = int(recorded)
        if before == own:
            return
        if self._given is None:
            self._lay_out(before)
        elif not self._repartition:
            raise InvalidOptionError(
                f"option 'partitions' is {own}, and namespace {self._namespace!r} in Redis at {self._deployment} "
                f"is split into {before}: leave the option out, or add repartition=true to move all to {own}"
            )
        else:
            await self._run([self._request(slot, "SET", record, own)])
            await self._move_from(before)

    async def _move_from(self, partitions: int) -> None:
        """Move every entry from another layout to ours. What is stored here meanwhile stays."""
        there = RedisBackend(
            BackendSettings(
                self._deployment.url,
                self._namespace,
                None,
                self._clock,
                {**self._deployment.options, "partitions": partitions},
            )
        )
        there._open = True
        try:
            page: Dict[str, Optional[float]] = {}
            async for info in there.scan():
                page[info.key] = info.ttl
                if len(page) == _PAGE:
                    await self._move(there, page)
                    page.clear()
            await self._move(there, page)
            await there.clear()
        finally:
            await there.close()

    async def _move(self, there: RedisBackend, lives: Mapping[str, Optional[float]]) -> None:
        entries = await there.get_many(list(lives))
        # Not what is too long for a partition that is smaller now.
        fitting = [(key, entry.value) for key, entry in entries.items() if self._refusal(key, entry.value) is None]
        if fitting:
            await self._run([self._set(key, value, lives[key], only_if_absent=True) for key, value in fitting])

    async def _trim(self) -> None:
        pending, patience = self._numbers(), self._patience()
        while pending and self._limit is not None:
            replies = await self._run([self._call("trim", number, self._limit) for number in pending])
            left = [number for number, more in zip(pending, replies) if more]
            patience.go_on(progress=len(left) < len(pending))
            pending = left

    async def close(self) -> None:
        """Close the connections of every event loop. See :meth:`Backend.close`."""
        self._open = False
        with self._lock:
            accesses, self._accesses = list(self._accesses.values()), {}
        here = asyncio.get_running_loop()
        for router, watch in accesses:
            if router.loop is here:
                await watch.close()
                await router.close()
            elif not router.loop.is_closed():
                router.loop.call_soon_threadsafe(watch.abort)
                router.loop.call_soon_threadsafe(router.abort)

    async def get(self, key: str) -> Optional[Entry]:
        """See :meth:`Backend.get`."""
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        """See :meth:`Backend.get_many`. One round trip for all, and one more if something is expired or damaged.

        One of several hundred pays another one, to put the uses of all in order. On a cluster, what belongs to a node
        that does not answer is a miss, as long as anything else is reached.
        """
        if not keys:
            return {}
        wanted = self._layout.parted(dict.fromkeys(keys))
        requests: List[Request] = []
        for partition, names in wanted.items():
            prefix = self._layout.prefixes[partition]
            data = [f"{prefix}d:{name}" for name in names]
            slot = self._layout.slots[partition]
            requests += (self._request(slot, "MGET", *data), self._request(slot, "RPUSH", prefix + "reads", *names))
        outcomes = await self._router().outcomes(requests, repeatable=True, patient=False)
        now = None if self._clock is None else self._clock()
        found: Dict[str, Entry] = {}
        over: List[Request] = []
        failure: Optional[CacheError] = None
        reached = False
        for (partition, names), got, noted in zip(wanted.items(), outcomes[::2], outcomes[1::2]):
            try:
                blobs = await self._read(partition, names, got, noted)
            except ForeignStoreError:
                data = [self._layout.data(partition, name) for name in names]
                await self._run([self._call("mend", partition, data=data)])
                reached = True
                continue
            except PartlyUnavailableError as error:
                failure = error
                continue
            reached = True
            dead = []
            for name, blob in zip(names, blobs):
                entry = _entry(blob, now)
                if entry is not None:
                    found[name] = entry
                elif blob is not None:
                    dead.append(name)
            if dead and not _takes_no_writes(noted):
                data = [self._layout.data(partition, name) for name in dead]
                over.append(self._call("sweep", partition, *dead, data=data))
            over += self._order(partition, names, noted)
        if failure is not None and not reached:
            raise failure
        if over:
            await self._run(over)
        return found

    async def _read(
        self, partition: int, names: Sequence[str], got: Outcome, noted: Outcome
    ) -> Sequence[Optional[bytes]]:
        """Return what was read of a partition."""
        if isinstance(got, list) and (isinstance(noted, int) or _is_full(noted) or _takes_no_writes(noted)):
            return got
        for outcome in (got, noted):
            failure = self._router().failure(outcome)
            if failure is not None:
                raise failure
        # The partition is between two nodes of a cluster: entries can be read one by one, but not be used.
        slot = self._layout.slots[partition]
        requests = [self._request(slot, "GET", self._layout.data(partition, name)) for name in names]
        return cast("List[Optional[bytes]]", await self._run(requests))

    def _order(self, partition: int, names: Sequence[str], noted: Outcome) -> Sequence[Request]:
        """Return what puts the noted uses in order, if that is up to this call."""
        if isinstance(noted, int):
            # Of all who made the list longer, the one who made it too long.
            return [self._call("use", partition)] if noted % MOST_READS < len(names) else []
        return [self._call("use", partition, *names)] if _is_full(noted) else []

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        """See :meth:`Backend.set`."""
        return await self.set_many({key: (value, ttl)})

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        """See :meth:`Backend.set_many`. One round trip for all."""
        requests: List[Request] = []
        refused: Optional[EntryTooLargeError] = None
        refusals = []
        for key, (value, ttl) in items.items():
            error = self._refusal(key, value)
            refused = refused or error
            refusals.append(error is not None)
            requests.append(self._delete(key, None) if error else self._set(key, value, ttl, only_if_absent=False))
        replies = await self._run(requests) if requests else []
        if refused is not None:
            raise refused
        return sum(map(self._number, replies))

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        """See :meth:`Backend.add`."""
        refused = self._refusal(key, value)
        if refused is not None:
            if await self.get(key) is not None:
                return False
            raise refused
        (reply,) = await self._run([self._set(key, value, ttl, only_if_absent=True)])
        return self._number(reply) >= 0

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.delete`."""
        (reply,) = await self._run([self._delete(key, version)], repeatable=False)
        return bool(reply)

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        """See :meth:`Backend.touch`. The version stays the same."""
        partition = self._layout.partition(key)
        data = [self._layout.data(partition, key)]
        request = self._call("touch", partition, key, _optional(ttl), cast(bytes, version or b""), data=data)
        (reply,) = await self._run([request])
        return bool(reply)

    async def scan(self) -> AsyncIterator[EntryInfo]:
        """See :meth:`Backend.scan`. Reads pages of 500; remembers the names that it has yielded.

        A server that goes on without end is not believed: pages that bring nothing new are bounded in time, and what
        they bring by the limit, if there is one.
        """
        for partition in self._numbers():
            # A hash that is resized during the scan may show a row twice.
            seen: Set[bytes] = set()
            cursor = b"0"
            patience = self._patience()
            room = _MOST_TURNOVER * (self._limit or math.inf)
            while True:
                (reply,) = await self._run([self._call("scan", partition, cursor)])
                cursor, *rows = self._list(reply, bytes)
                before = len(seen)
                for name, size, ttl in zip(rows[::3], rows[1::3], rows[2::3]):
                    try:
                        info = EntryInfo(name.decode("ascii"), int(size), float(ttl) if ttl else None)
                    except (AttributeError, TypeError, ValueError):
                        raise self._nonsense() from None
                    if name not in seen:
                        seen.add(name)
                        room -= max(info.size, len(name))
                        yield info
                if cursor == b"0":
                    break
                if room < 0:
                    raise patience.over()
                patience.go_on(progress=len(seen) > before)

    async def usage(self) -> Usage:
        """See :meth:`Backend.usage`. Looks at every entry only after the server evicted some by itself."""
        accounts: Dict[int, Tuple[int, int]] = {}
        checked: Dict[int, bytes] = {}
        patience = self._patience()
        while len(accounts) < self._layout.partitions:
            pending = [number for number in self._numbers() if number not in accounts]
            replies = await self._run([self._call("usage", n, checked.pop(n, b"")) for n in pending])
            for number, reply in zip(pending, replies):
                more, is_checked, evicted, entries, total = self._list(reply, int, int, bytes, int, int)[:5]
                if not is_checked:
                    await self._check(number, patience)
                    checked[number] = evicted
                elif not more:
                    accounts[number] = (entries, total)
            patience.go_on(progress=any(number in accounts for number in pending))
        return Usage(sum(entries for entries, _ in accounts.values()), sum(size for _, size in accounts.values()))

    async def clear(self) -> int:
        """See :meth:`Backend.clear`. Goes on in steps of a thousand entries."""
        deleted = 0
        pending, patience = self._numbers(), self._patience()
        while pending:
            replies = await self._run([self._call("clear", number) for number in pending])
            steps = [self._list(reply, int, int) for reply in replies]
            deleted += sum(step[0] for step in steps)
            left = [number for number, step in zip(pending, steps) if step[1]]
            patience.go_on(progress=len(left) < len(pending))
            pending = left
        return deleted

    async def ping(self) -> None:
        """See :meth:`Backend.ping`. A cluster answers if any of its partitions does."""
        if not self._in_cluster:
            # A replica answers a PING all the same. This is a write that changes nothing and needs no memory.
            await self._run([self._request(0, "PERSIST", self._layout.prefixes[0] + "account")])
            return
        # So does a node whose cluster is down.
        slots, prefixes = self._layout.slots, self._layout.prefixes
        requests = [self._request(slot, "EXISTS", prefix + "account") for slot, prefix in zip(slots, prefixes)]
        outcomes = await self._router().outcomes(requests, repeatable=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, CacheError)]
        if len(failures) == len(outcomes):
            raise failures[0]

    async def wait(self, key: str, *, timeout: float) -> None:
        """See :meth:`Backend.wait`. Costs a look; those who wait for one key here subscribe and unsubscribe once."""
        partition = self._layout.partition(key)
        name = self._layout.data(partition, key)

        async def remaining() -> float:
            (reply,) = await self._run([self._request(self._layout.slots[partition], "PTTL", name)])
            life = self._number(reply)
            return timeout if life == -1 else max(0, life) / 1000

        if not await self._access().watch.wait(name, remaining, timeout):
            await super().wait(key, timeout=timeout)

    def _number(self, reply: Reply) -> int:
        """Return a reply that is a number.

        :raises BackendUnavailableError: if it is something else.
        """
        if isinstance(reply, int):
            return reply
        raise self._nonsense()

    def _list(self, reply: Reply, *kinds: type) -> List[Any]:
        """Return a reply that is a list and begins with items of these kinds.

        :raises BackendUnavailableError: if it is something else.
        """
        if isinstance(reply, list) and len(reply) >= len(kinds) and all(map(isinstance, reply, kinds)):
            return reply
        raise self._nonsense()

    def _nonsense(self) -> BackendUnavailableError:
        return BackendUnavailableError(f"Redis at {self._deployment} answers what Redis does not: check the address")

    def _numbers(self) -> Sequence[int]:
        return range(self._layout.partitions)

    def _request(self, slot: int, *command: Argument) -> Request:
        return self._request_type(slot, command)

    def _call(self, script: str, partition: int, *arguments: Argument, data: Sequence[str] = ()) -> Request:
        """Return the request that runs ``script`` on a partition; ``data`` are the data keys it is about."""
        prefix = self._layout.prefixes[partition]
        now = "" if self._clock is None else repr(float(self._clock()))
        keys = [prefix + index for index in INDEXES] + list(data)
        command = ("EVALSHA", SCRIPTS[script].sha, len(keys), *keys, prefix + "d:", now, *arguments)
        return self._request(self._layout.slots[partition], *command)

    def _set(self, key: str, value: bytes, ttl: Optional[float], *, only_if_absent: bool) -> Request:
        partition = self._layout.partition(key)
        # The script writes the expiry in, if there is one; the value only passes through.
        blob = b"".join((os.urandom(VERSION_BYTES), _FOREVER, value))
        arguments = (_optional(self._limit), key, blob, _optional(ttl), int(only_if_absent))
        return self._call("set", partition, *arguments, data=[self._layout.data(partition, key)])

    def _delete(self, key: str, version: Optional[Hashable]) -> Request:
        partition = self._layout.partition(key)
        data = [self._layout.data(partition, key)]
        return self._call("delete", partition, key, cast(bytes, version or b""), data=data)

    def _refusal(self, key: str, value: bytes) -> Optional[EntryTooLargeError]:
        size = len(key) + len(value)
        if self._limit is not None and size > self._limit:
            return EntryTooLargeError(size, self._limit)
        if len(value) > _MAX_VALUE_BYTES:
            return EntryTooLargeError(size, len(key) + _MAX_VALUE_BYTES)
        return None

    async def _check(self, partition: int, patience: _Patience) -> None:
        """Drop the index rows of every entry that the server evicted."""
        cursor = b"0"
        while True:
            (reply,) = await self._run([self._call("scan", partition, cursor)])
            cursor = self._list(reply, bytes)[0]
            if cursor == b"0":
                return
            patience.go_on(progress=False)

    async def _run(self, requests: Sequence[Request], *, repeatable: bool = True) -> List[Reply]:
        router = self._router()
        try:
            return await router.run(requests, repeatable=repeatable)
        except ForeignStoreError:
            # Whoever can write there must not be able to keep a program from starting, or from the rest.
            await self._mend(requests)
        try:
            return await router.run(requests, repeatable=repeatable)
        except ForeignStoreError as error:
            raise BackendUnavailableError(str(error)) from error

    async def _mend(self, requests: Sequence[Request]) -> None:
        """Remove what is of another type than ours from under the names that scripts were called with."""
        mending = []
        for slot, (verb, *arguments) in requests:
            if verb == "EVALSHA":
                # The keys, the prefix and the time stay.
                rest = arguments[1 : 4 + int(arguments[1])]
                mending.append(self._request(slot, verb, SCRIPTS["mend"].sha, *rest))
        if mending:
            await self._router().run(mending, repeatable=True)

    def _patience(self) -> _Patience:
        return _Patience(_UPKEEP_FACTOR * self._timeout, self._deployment)

    def _router(self) -> Router:
        return self._access().router

    def _access(self) -> _Access:
        if not self._open:
            raise BackendClosedError(f"the cache in Redis at {self._deployment} is closed: open it before use")
        loop = asyncio.get_running_loop()
        access = self._accesses.get(loop)
        if access is None:
            access = self._connect()
            with self._lock:
                # asyncio.run has closed the sockets of the loops that are gone.
                self._accesses = {other: old for other, old in self._accesses.items() if not other.is_closed()}
                self._accesses[loop] = access
        return access

    def _connect(self) -> _Access:
        from ._redis_cluster import Cluster
        from ._redis_router import Sentinel, Standalone
        from ._redis_server import CLUSTER, SENTINEL, STANDALONE
        from ._redis_watch import Watch

        routers: Dict[str, Callable[[Deployment, int, float], Router]] = {
            STANDALONE: Standalone,
            SENTINEL: Sentinel,
            CLUSTER: Cluster,
        }
        router = routers[self._deployment.topology](self._deployment, self._pool_size, self._timeout)
        return _Access(router, Watch(router.subscribable, self._timeout))


def _entry(blob: Optional[bytes], now: Optional[float]) -> Optional[Entry]:
    """Return the entry that was read, unless it is damaged or expired; ``now`` is None by the server's own clock."""
    if not isinstance(blob, bytes) or len(blob) < HEADER_BYTES:
        return None
    if now is not None and now >= struct.unpack_from(">d", blob, VERSION_BYTES)[0]:
        return None
    return Entry(blob[HEADER_BYTES:], blob[:VERSION_BYTES])


def _is_full(outcome: Outcome) -> bool:
    """Return whether a server has no memory left to note a use; a script is let through."""
    from redis.exceptions import OutOfMemoryError

    return isinstance(outcome, OutOfMemoryError)


def _takes_no_writes(outcome: Outcome) -> bool:
    """Return whether a server refuses to write by any means, and reads: it cannot save, or has too few replicas."""
    return isinstance(outcome, Exception) and str(outcome).startswith(("MISCONF", "NOREPLICAS"))


def _optional(number: Optional[float]) -> str:
    return "" if number is None else repr(number)


def _topology(text: str) -> str:
    if text not in _TOPOLOGIES:
        raise ValueError(f"expected one of {', '.join(_TOPOLOGIES)}")
    return text


_TOPOLOGIES = ("standalone", "sentinel", "cluster")
_OPTIONS = (
    Option("topology", _topology, "standalone", "standalone, sentinel or cluster"),
    Option("sentinel_service", str, None, "the name by which the Sentinels know the master"),
    Option("sentinel_username", str, None, "the user for the Sentinels, where they ask for one"),
    Option("sentinel_password", str, None, "the password for the Sentinels", secret=True),
    Option(
        "partitions",
        int,
        None,
        "hash slots into which a new namespace and its limit are split; 64 on a cluster, else 1",
        minimum=1,
        maximum=SLOTS,
    ),
    Option(
        "repartition", parse_boolean, False, "move a namespace that is split otherwise to this number of partitions"
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
        url="redis://[user:password@]host[:port][,host[:port]...][/database]",
        summary="one cache for many processes and machines; exact LRU and account",
        options=_OPTIONS,
        capabilities=Capabilities(max_value_bytes=_MAX_VALUE_BYTES),
        client="redis",
        install="pip install 'claude-force-cache[redis]'",
        api_version=1,
    )
