"""What one would use instead: each library as a peer that gets and sets the same values in the same stores."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

# Or LiteLLM asks the internet when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

__all__ = ["FLOOR", "NOTHING", "PEERS", "Peer", "Store"]

FLOOR = "floor: "
NOTHING = "nothing"
_ENTRIES_ONLY = "limit in entries"
_SHARED = "shared"
_UNPICKLES = "shared; unpickles"

Get = Callable[[int], Awaitable[object]]
Set = Callable[[int, Any], Awaitable[object]]
Many = Callable[[Sequence[int]], Awaitable[object]]


class Peer(NamedTuple):
    """A library, or a floor.

    :param get: returns the value of the key of that number.
    :param set: stores a value under it.
    :param guarantees: what it holds to: integrity, limit in bytes, exact account, shared between processes, own copy.
    :param encodes: whether values are objects; else the bytes of their JSON.
    :param many: returns the values of several keys by one verb, where the library has one.
    :param at_once: the same for callers that do not know of each other; many calls of ``get``, if it is None.
    """

    name: str
    get: Get
    set: Optional[Set]
    guarantees: str
    encodes: bool = True
    many: Optional[Many] = None
    at_once: Optional[Many] = None


class Store(NamedTuple):
    """Where peers put things, and what closes them."""

    folder: Path
    port: int
    stack: AsyncExitStack


Maker = Callable[[Store], Awaitable[Peer]]

PEERS: Dict[str, List[Tuple[str, Maker]]] = {"memory": [], "disk": [], "redis": [], "memcached": []}
"""By store what makes each peer. The first one of a store is the contender that the targets name."""


def _peer(store: str, name: str) -> Callable[[Maker], Maker]:
    def enter(maker: Maker) -> Maker:
        async def quiet(place: Store) -> Peer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return await maker(place)

        PEERS[store].append((name, quiet))
        return maker

    return enter


def _key(owner: str, number: int) -> str:
    return f"{owner}:{number:060d}"


async def _direct(value: object) -> object:
    return value


def _in_thread(call: Callable[..., Any], *arguments: Any) -> Awaitable[object]:
    return asyncio.get_running_loop().run_in_executor(None, call, *arguments)


# ---- memory


@_peer("memory", "cashews")
async def _cashews_memory(store: Store) -> Peer:
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://", size=10_000)
    store.stack.push_async_callback(cache.close)
    return _cashews(cache, _ENTRIES_ONLY)


def _cashews(cache: Any, guarantees: str) -> Peer:
    return Peer(
        "cashews",
        lambda n: cache.get(_key("cashews", n)),
        lambda n, v: cache.set(_key("cashews", n), v, expire=3600),
        guarantees,
        many=lambda numbers: cache.get_many(*[_key("cashews", number) for number in numbers]),
    )


@_peer("memory", "aiocache")
async def _aiocache_memory(store: Store) -> Peer:
    from aiocache import SimpleMemoryCache

    return _aiocache(SimpleMemoryCache(), NOTHING)


def _aiocache(cache: Any, guarantees: str) -> Peer:
    return Peer(
        "aiocache",
        lambda n: cache.get(_key("aiocache", n)),
        lambda n, v: cache.set(_key("aiocache", n), v, ttl=3600),
        guarantees,
        many=lambda numbers: cache.multi_get([_key("aiocache", number) for number in numbers]),
    )


@_peer("memory", "LiteLLM")
async def _litellm_memory(store: Store) -> Peer:
    from litellm.caching.in_memory_cache import InMemoryCache

    return _litellm(InMemoryCache(max_size_in_memory=10_000), _ENTRIES_ONLY)


def _litellm(cache: Any, guarantees: str) -> Peer:
    return Peer(
        "LiteLLM",
        lambda n: cache.async_get_cache(_key("litellm", n)),
        lambda n, v: cache.async_set_cache(_key("litellm", n), v, ttl=3600),
        guarantees,
    )


@_peer("memory", "LangChain")
async def _langchain_memory(store: Store) -> Peer:
    from langchain_core.caches import InMemoryCache

    return _langchain(InMemoryCache(), "no expiry, no limit")


def _langchain(cache: Any, guarantees: str) -> Peer:
    from langchain_core.outputs import Generation

    return Peer(
        "LangChain",
        lambda n: cache.alookup(_key("langchain", n), "model"),
        lambda n, v: cache.aupdate(_key("langchain", n), "model", [Generation(text=json.dumps(v))]),
        guarantees,
    )


@_peer("memory", "cachetools")
async def _cachetools(store: Store) -> Peer:
    import cachetools

    cache: Any = cachetools.TTLCache(10_000, 3600)
    return Peer(
        "cachetools",
        lambda n: _direct(cache.get(_key("cachetools", n))),
        lambda n, v: _direct(cache.update({_key("cachetools", n): v})),
        _ENTRIES_ONLY,
    )


@_peer("memory", "cachebox")
async def _cachebox(store: Store) -> Peer:
    import cachebox

    cache: Any = cachebox.TTLCache(10_000, 3600)
    return Peer(
        "cachebox",
        lambda n: _direct(cache.get(_key("cachebox", n))),
        lambda n, v: _direct(cache.insert(_key("cachebox", n), v)),
        _ENTRIES_ONLY,
    )


@_peer("memory", "dogpile.cache")
async def _dogpile_memory(store: Store) -> Peer:
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.memory", expiration_time=3600)
    return Peer(
        "dogpile.cache",
        lambda n: _direct(region.get(_key("dogpile", n))),
        lambda n, v: _direct(region.set(_key("dogpile", n), v)),
        NOTHING,
    )


@_peer("memory", f"{FLOOR}await an empty coroutine")
async def _nothing(store: Store) -> Peer:
    async def nothing(_: int) -> None:
        return

    async def forget(number: int, value: object) -> None:
        return

    return Peer(f"{FLOOR}await an empty coroutine", nothing, forget, NOTHING)


# ---- disk


@_peer("disk", "diskcache in a thread")
async def _diskcache(store: Store) -> Peer:
    import diskcache

    cache = diskcache.Cache(str(store.folder / "diskcache"))
    store.stack.callback(cache.close)

    def get_many(numbers: Sequence[int]) -> object:
        return [cache.get(_key("raw", number)) for number in numbers]

    return Peer(
        "diskcache in a thread",
        lambda n: _in_thread(cache.get, _key("raw", n)),
        lambda n, v: _in_thread(cache.set, _key("raw", n), v, 3600),
        "soft limit in bytes; shared; unpickles",
        encodes=False,
        many=lambda numbers: _in_thread(get_many, numbers),
    )


@_peer("disk", "cashews")
async def _cashews_disk(store: Store) -> Peer:
    from cashews import Cache

    cache = Cache()
    cache.setup("disk://", directory=str(store.folder / "cashews"))
    store.stack.push_async_callback(cache.close)
    return _cashews(cache, _UNPICKLES)


@_peer("disk", "LangChain")
async def _langchain_disk(store: Store) -> Peer:
    from langchain_community.cache import SQLiteCache

    return _langchain(SQLiteCache(str(store.folder / "langchain.db")), "shared; no expiry, no limit")


@_peer("disk", f"{FLOOR}an empty function in a thread")
async def _hop(store: Store) -> Peer:
    return Peer(
        f"{FLOOR}an empty function in a thread",
        lambda _: _in_thread(int),
        lambda number, value: _in_thread(int),
        NOTHING,
        at_once=lambda numbers: _in_thread(int),
        many=lambda numbers: _in_thread(int),
    )


# ---- networks: the floors know in advance how long a reply is, and look at nothing else


class _Verbs(NamedTuple):
    """A protocol's commands as bytes, and the length of their replies."""

    get: Callable[[Sequence[bytes]], bytes]
    set: Callable[[bytes, bytes], bytes]
    found: Callable[[Sequence[bytes], Sequence[int]], int]
    stored: int


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


_VERBS = {
    "redis": _Verbs(
        get=lambda keys: _resp(b"MGET", *keys),
        set=lambda key, value: _resp(b"SET", key, value, b"EX", b"3600"),
        found=lambda keys, sizes: (
            len(b"*%d\r\n" % len(keys)) + sum(len(b"$%d\r\n" % size) + size + 2 for size in sizes)
        ),
        stored=len(b"+OK\r\n"),
    ),
    "memcached": _Verbs(
        get=lambda keys: b"get " + b" ".join(keys) + b"\r\n",
        set=lambda key, value: b"set %s 0 3600 %d\r\n%s\r\n" % (key, len(value), value),
        found=lambda keys, sizes: (
            sum(len(b"VALUE %s 0 %d\r\n" % (key, size)) + size + 2 for key, size in zip(keys, sizes)) + len(b"END\r\n")
        ),
        stored=len(b"STORED\r\n"),
    ),
}


class _Bare(asyncio.Protocol):
    """As little as a client in asyncio can do: one command at a time, no time-out."""

    def __init__(self) -> None:
        self._waiter: Optional[asyncio.Future[bytes]] = None
        self._parts: List[bytes] = []
        self._missing = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing <= 0 and self._waiter is not None:
            self._waiter.set_result(b"".join(self._parts))

    async def ask(self, question: bytes, expected: int) -> bytes:
        self._waiter, self._parts, self._missing = asyncio.get_running_loop().create_future(), [], expected
        self._transport.write(question)
        return await self._waiter


class _Blocking:
    """As little as any client can do: write, and read until all is there. It stops the event loop meanwhile."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def ask(self, question: bytes, expected: int) -> bytes:
        self._connection.sendall(question)
        received = self._connection.recv(1 << 18)
        while len(received) < expected:
            received += self._connection.recv(1 << 18)
        return received


def _wire(name: str, verbs: _Verbs, wire: Any, guarantees: str) -> Peer:
    sizes: Dict[int, int] = {}

    def encoded(number: int) -> bytes:
        return _key(name[len(FLOOR) : len(FLOOR) + 6].replace(" ", "-"), number).encode()

    async def get_many(numbers: Sequence[int]) -> object:
        keys = [encoded(number) for number in numbers]
        return await wire.ask(verbs.get(keys), verbs.found(keys, [sizes[number] for number in numbers]))

    async def put(number: int, value: bytes) -> None:
        sizes[number] = len(value)
        await wire.ask(verbs.set(encoded(number), value), verbs.stored)

    async def get(number: int) -> object:
        keys = [encoded(number)]
        return await wire.ask(verbs.get(keys), verbs.found(keys, [sizes[number]]))

    return Peer(name, get, put, guarantees, encodes=False, many=get_many, at_once=get_many)


def _wires(store: str) -> None:
    socket_name, protocol_name = f"{FLOOR}a blocking socket", f"{FLOOR}a bare asyncio.Protocol"

    @_peer(store, socket_name)
    async def _socket(place: Store) -> Peer:
        connection = socket.create_connection(("127.0.0.1", place.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        place.stack.callback(connection.close)
        return _wire(socket_name, _VERBS[store], _Blocking(connection), "blocks the event loop")

    @_peer(store, protocol_name)
    async def _protocol(place: Store) -> Peer:
        transport, bare = await asyncio.get_running_loop().create_connection(_Bare, "127.0.0.1", place.port)
        place.stack.callback(transport.close)
        return _wire(protocol_name, _VERBS[store], bare, "no time-out")


# ---- Redis


@_peer("redis", "redis.asyncio")
async def _redis(store: Store) -> Peer:
    from redis.asyncio import BlockingConnectionPool, Redis

    # As it comes, but for a pool that lets callers wait: the default one raises at 64 callers at once.
    raw = Redis(connection_pool=BlockingConnectionPool(host="127.0.0.1", port=store.port, max_connections=64))
    store.stack.push_async_callback(raw.aclose)
    return Peer(
        "redis.asyncio",
        lambda n: raw.get(_key("raw", n)),
        lambda n, v: raw.set(_key("raw", n), v, ex=3600),
        _SHARED,
        encodes=False,
        many=lambda numbers: raw.mget([_key("raw", number) for number in numbers]),
    )


@_peer("redis", "cashews")
async def _cashews_redis(store: Store) -> Peer:
    from cashews import Cache

    cache = Cache()
    cache.setup(f"redis://127.0.0.1:{store.port}", client_side=False)
    await cache.init()
    store.stack.push_async_callback(cache.close)
    return _cashews(cache, _UNPICKLES)


@_peer("redis", "aiocache")
async def _aiocache_redis(store: Store) -> Peer:
    from aiocache import RedisCache
    from aiocache.serializers import JsonSerializer

    cache = RedisCache(endpoint="127.0.0.1", port=store.port, serializer=JsonSerializer())
    store.stack.push_async_callback(cache.close)
    return _aiocache(cache, _SHARED)


@_peer("redis", "LiteLLM")
async def _litellm_redis(store: Store) -> Peer:
    from litellm.caching.redis_cache import RedisCache

    cache = RedisCache(host="127.0.0.1", port=store.port)
    store.stack.push_async_callback(cache.disconnect)
    return _litellm(cache, _SHARED)


@_peer("redis", "LangChain")
async def _langchain_redis(store: Store) -> Peer:
    from langchain_community.cache import AsyncRedisCache
    from redis.asyncio import Redis

    raw = Redis(host="127.0.0.1", port=store.port)
    store.stack.push_async_callback(raw.aclose)
    return _langchain(AsyncRedisCache(raw, ttl=3600), _SHARED)


@_peer("redis", "dogpile.cache in a thread")
async def _dogpile_redis(store: Store) -> Peer:
    from dogpile.cache import make_region

    arguments = {"host": "127.0.0.1", "port": store.port, "redis_expiration_time": 3600}
    region = make_region().configure("dogpile.cache.redis", arguments=arguments)
    return _dogpile(region)


def _dogpile(region: Any) -> Peer:
    return Peer(
        "dogpile.cache in a thread",
        lambda n: _in_thread(region.get, _key("dogpile", n)),
        lambda n, v: _in_thread(region.set, _key("dogpile", n), v),
        _UNPICKLES,
        many=lambda numbers: _in_thread(region.get_multi, [_key("dogpile", number) for number in numbers]),
    )


_wires("redis")


# ---- Memcached


@_peer("memcached", "PooledClient in a thread")
async def _memcached(store: Store) -> Peer:
    from pymemcache import PooledClient

    loop, pool = asyncio.get_running_loop(), store.stack.enter_context(ThreadPoolExecutor(4))
    raw = PooledClient(("127.0.0.1", store.port), max_pool_size=4, default_noreply=False)
    store.stack.callback(raw.close)
    return Peer(
        "PooledClient in a thread",
        lambda n: loop.run_in_executor(pool, raw.get, _key("raw", n)),
        lambda n, v: loop.run_in_executor(pool, raw.set, _key("raw", n), v, 3600),
        _SHARED,
        encodes=False,
        many=lambda numbers: loop.run_in_executor(pool, raw.get_many, [_key("raw", number) for number in numbers]),
    )


@_peer("memcached", "dogpile.cache in a thread")
async def _dogpile_memcached(store: Store) -> Peer:
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.pymemcache", arguments={"url": f"127.0.0.1:{store.port}"}, expiration_time=3600
    )
    return _dogpile(region)


_wires("memcached")
