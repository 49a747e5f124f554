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
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Sequence

__all__ = ["NOTHING", "PEERS", "Peer", "Store"]

NOTHING = "nothing"

Get = Callable[[int], Awaitable[object]]
Set = Callable[[int, Any], Awaitable[object]]


class Peer(NamedTuple):
    """A library, or a floor.

    :param get: returns the value of the key of that number.
    :param set: stores a value under it.
    :param guards: what it verifies, limits and copies at each of these calls.
    :param encodes: whether values are objects; else the bytes of their JSON.
    :param many: returns the values of several keys, where the library can.
    """

    name: str
    get: Get
    set: Optional[Set]
    guards: str
    encodes: bool = True
    many: Optional[Callable[[Sequence[int]], Awaitable[object]]] = None


class Store(NamedTuple):
    """Where peers put things, and what closes them."""

    folder: Path
    port: int
    stack: AsyncExitStack


def _key(number: int) -> str:
    return f"peer:{number:060d}"


async def _memory(store: Store) -> List[Peer]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cachebox
        import cachetools
        from aiocache import SimpleMemoryCache
        from cashews import Cache as Cashews
        from dogpile.cache import make_region
        from langchain_core.caches import InMemoryCache as LangChain
        from langchain_core.outputs import Generation
        from litellm.caching.in_memory_cache import InMemoryCache as LiteLLM

    cashews = Cashews()
    cashews.setup("mem://", size=10_000)
    store.stack.push_async_callback(cashews.close)
    aiocache = SimpleMemoryCache()
    litellm = LiteLLM(max_size_in_memory=10_000)
    langchain = LangChain()
    tools: Any = cachetools.TTLCache(10_000, 3600)
    box: Any = cachebox.TTLCache(10_000, 3600)
    region = make_region().configure("dogpile.cache.memory", expiration_time=3600)

    async def langchain_set(number: int, value: Any) -> None:
        await langchain.aupdate(_key(number), "model", [Generation(text=json.dumps(value))])

    async def direct(value: object) -> object:
        return value

    return [
        Peer("cashews", lambda n: cashews.get(_key(n)), lambda n, v: cashews.set(_key(n), v, expire=3600), NOTHING),
        Peer("aiocache", lambda n: aiocache.get(_key(n)), lambda n, v: aiocache.set(_key(n), v, ttl=3600), NOTHING),
        Peer(
            "LiteLLM",
            lambda n: litellm.async_get_cache(_key(n)),
            lambda n, v: litellm.async_set_cache(_key(n), v, ttl=3600),
            NOTHING,
        ),
        Peer("LangChain", lambda n: langchain.alookup(_key(n), "model"), langchain_set, "no expiry, no limit"),
        Peer(
            "cachetools", lambda n: direct(tools.get(_key(n))), lambda n, v: direct(tools.update({_key(n): v})), NOTHING
        ),
        Peer("cachebox", lambda n: direct(box.get(_key(n))), lambda n, v: direct(box.insert(_key(n), v)), NOTHING),
        Peer(
            "dogpile.cache", lambda n: direct(region.get(_key(n))), lambda n, v: direct(region.set(_key(n), v)), NOTHING
        ),
    ]


async def _disk(store: Store) -> List[Peer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diskcache
        from cashews import Cache as Cashews
        from litellm.caching.disk_cache import DiskCache as LiteLLM

    loop = asyncio.get_running_loop()
    raw = diskcache.Cache(str(store.folder / "diskcache"))
    store.stack.callback(raw.close)
    cashews = Cashews()
    cashews.setup("disk://", directory=str(store.folder / "cashews"))
    store.stack.push_async_callback(cashews.close)
    litellm = LiteLLM(str(store.folder / "litellm"))

    def many(numbers: Sequence[int]) -> Awaitable[object]:
        return loop.run_in_executor(None, lambda: [raw.get(_key(number)) for number in numbers])

    return [
        Peer(
            "diskcache in a thread",
            lambda n: loop.run_in_executor(None, raw.get, _key(n)),
            lambda n, v: loop.run_in_executor(None, raw.set, _key(n), v),
            "soft limit",
            encodes=False,
            many=many,
        ),
        Peer("cashews", lambda n: cashews.get(_key(n)), lambda n, v: cashews.set(_key(n), v, expire=3600), "unpickles"),
        Peer(
            "LiteLLM",
            lambda n: litellm.async_get_cache(_key(n)),
            lambda n, v: litellm.async_set_cache(_key(n), v),
            "blocks the event loop",
        ),
    ]


class _Bare(asyncio.Protocol):
    """As little as a client in asyncio can do: one command at a time, its reply told apart by its length alone."""

    def __init__(self) -> None:
        self.waiter: Optional[asyncio.Future[bytes]] = None
        self.received = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n")
        if end >= 0 and len(self.received) >= end + 4 + int(self.received[1:end]) and self.waiter is not None:
            reply, self.received = self.received[end + 2 : -2], b""
            self.waiter.set_result(reply)

    async def get(self, key: bytes) -> bytes:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key))
        return await self.waiter


def _blocking_get(connection: socket.socket, key: bytes) -> bytes:
    connection.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key))
    received = connection.recv(1 << 16)
    end = received.find(b"\r\n")
    while len(received) < end + 4 + int(received[1:end]):
        received += connection.recv(1 << 16)
    return received[end + 2 : -2]


async def _redis(store: Store) -> List[Peer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from aiocache import RedisCache as Aiocache
        from aiocache.serializers import JsonSerializer
        from cashews import Cache as Cashews
        from litellm.caching.redis_cache import RedisCache as LiteLLM
        from redis.asyncio import BlockingConnectionPool, Redis

    raw = Redis(connection_pool=BlockingConnectionPool(host="127.0.0.1", port=store.port, max_connections=64))
    store.stack.push_async_callback(raw.aclose)
    cashews = Cashews()
    cashews.setup(f"redis://127.0.0.1:{store.port}", client_side=False)
    await cashews.init()
    store.stack.push_async_callback(cashews.close)
    aiocache = Aiocache(endpoint="127.0.0.1", port=store.port, serializer=JsonSerializer())
    store.stack.push_async_callback(aiocache.close)
    litellm = LiteLLM(host="127.0.0.1", port=store.port)
    store.stack.push_async_callback(litellm.disconnect)
    connection = socket.create_connection(("127.0.0.1", store.port))
    store.stack.callback(connection.close)
    transport, bare = await asyncio.get_running_loop().create_connection(_Bare, "127.0.0.1", store.port)
    store.stack.callback(transport.close)

    async def blocking(number: int) -> object:
        return _blocking_get(connection, _key(number).encode())

    return [
        Peer(
            "redis.asyncio",
            lambda n: raw.get(_key(n)),
            lambda n, v: raw.set(_key(n), v, ex=3600),
            "no limit of one's own",
            encodes=False,
            many=lambda numbers: raw.mget([_key(number) for number in numbers]),
        ),
        Peer("floor: a blocking socket", blocking, None, "blocks the event loop", encodes=False),
        Peer(
            "floor: a bare asyncio.Protocol", lambda n: bare.get(_key(n).encode()), None, "no time-out", encodes=False
        ),
        Peer("cashews", lambda n: cashews.get(_key(n)), lambda n, v: cashews.set(_key(n), v, expire=3600), "unpickles"),
        Peer("aiocache", lambda n: aiocache.get(_key(n)), lambda n, v: aiocache.set(_key(n), v, ttl=3600), NOTHING),
        Peer(
            "LiteLLM",
            lambda n: litellm.async_get_cache(_key(n)),
            lambda n, v: litellm.async_set_cache(_key(n), v, ttl=3600),
            NOTHING,
        ),
    ]


async def _memcached(store: Store) -> List[Peer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dogpile.cache import make_region
        from pymemcache import PooledClient

    loop, pool = asyncio.get_running_loop(), store.stack.enter_context(ThreadPoolExecutor(4))
    raw = PooledClient(("127.0.0.1", store.port), max_pool_size=4, default_noreply=False)
    store.stack.callback(raw.close)
    region = make_region().configure(
        "dogpile.cache.pymemcache", arguments={"url": f"127.0.0.1:{store.port}"}, expiration_time=3600
    )

    def in_thread(call: Callable[..., Any], *arguments: Any) -> Awaitable[object]:
        return loop.run_in_executor(pool, call, *arguments)

    return [
        Peer(
            "PooledClient in a thread",
            lambda n: in_thread(raw.get, _key(n)),
            lambda n, v: in_thread(raw.set, _key(n), v, 3600),
            "no limit of one's own",
            encodes=False,
            many=lambda numbers: in_thread(raw.get_many, [_key(number) for number in numbers]),
        ),
        Peer(
            "dogpile.cache in a thread",
            lambda n: in_thread(region.get, _key(n)),
            lambda n, v: in_thread(region.set, _key(n), v),
            "unpickles",
        ),
    ]


PEERS: Dict[str, Callable[[Store], Awaitable[List[Peer]]]] = {
    "memory": _memory,
    "disk": _disk,
    "redis": _redis,
    "memcached": _memcached,
}
