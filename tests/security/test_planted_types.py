"""Somebody puts another type of record where Redis has one of ours: it costs misses, and no program that starts."""

import asyncio
from typing import Any, Callable, Dict, Optional

import pytest
import redis

from claude_force_cache import MISSING, BytesCodec, open_cache

INDEXES = ["sizes", "uses", "lives", "account", "reads"]
TYPES: Dict[str, Callable[[Any, str], object]] = {
    "string": lambda client, name: client.set(name, b"planted"),
    "list": lambda client, name: client.rpush(name, b"planted"),
    "hash": lambda client, name: client.hset(name, "planted", "x"),
    "sorted set": lambda client, name: client.zadd(name, {"planted": 1}),
    "stream": lambda client, name: client.xadd(name, {"planted": 1}),
}
RIGHT = {"sizes": "hash", "uses": "sorted set", "lives": "sorted set", "account": "hash", "reads": "list"}


def plant(client: Any, name: str, kind: str) -> None:
    client.delete(name)
    TYPES[kind](client, name)


async def use(cache: Any) -> None:
    """Use a cache as a program does, and find that it is right."""
    assert await cache.get("key") in {MISSING, b"answer"}
    assert await cache.set("key", b"answer", tags=["tag"])
    assert await cache.get("key") == b"answer"
    assert cache._guard.outage is cache._guard.refusal is None
    report = await cache.verify()
    assert report.consistent, report
    assert (await cache.usage()).entries == report.entries


def opened(server: Any, namespace: str, **options: Any) -> Any:
    return open_cache(server.url, namespace=namespace, codec=BytesCodec(), tier_bytes=0, timeout=5, **options)


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("kind", TYPES)
def test_an_index_of_another_type_is_made_anew(redis_server: Any, namespace: str, index: str, kind: str) -> None:
    if RIGHT[index] == kind:
        kind = "string"
    name = f"cfc:{{{namespace}:0}}:{index}"

    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            async with opened(redis_server, namespace) as cache:
                await cache.set("key", b"answer", tags=["tag"])
                plant(client, name, kind)
                await use(cache)
                plant(client, name, kind)
                assert await cache.invalidate("tag") in {0, 1}
                plant(client, name, kind)
            async with opened(redis_server, namespace) as cache:
                await use(cache)
                plant(client, name, kind)
                await cache.clear()
                assert (await cache.usage()) == (0, 0)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "string"])
def test_an_entry_of_another_type_is_a_miss_and_overwritten(redis_server: Any, namespace: str, kind: str) -> None:
    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            async with opened(redis_server, namespace) as cache:
                for indexed in (True, False):
                    stored = await cache.stored_key("key")
                    name = f"cfc:{{{namespace}:0}}:d:{stored}"
                    if indexed:
                        await cache.set("key", b"answer")
                    plant(client, name, kind)
                    assert await cache.get("key") is MISSING
                    assert (await cache.verify()).consistent
                    plant(client, name, kind)
                    assert await cache._backend.add(stored, b"added", ttl=60)
                    plant(client, name, kind)
                    assert await cache.delete("key") in {True, False}
                    plant(client, name, kind)
                    plant(client, f"{name}.lease", kind)
                    await use(cache)
                    await cache.clear()
                    assert client.exists(name) == 0

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("record", ["no number", "0", "-1", "99999999999999999999", "list"])
def test_a_record_of_partitions_that_is_none_is_an_outage_that_says_what_to_delete(
    redis_server: Any, namespace: str, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"cfc:{{{namespace}}}:partitions"

    async def compute() -> bytes:
        return b"answer"

    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            if record == "list":
                client.rpush(name, b"1")
            else:
                client.set(name, record)
            async with opened(redis_server, namespace) as cache:
                assert await cache.get_or_compute("key", compute) == b"answer"
                assert name in str(cache._guard.outage)
            client.delete(name)
            async with opened(redis_server, namespace) as cache:
                await use(cache)

    asyncio.run(asyncio.wait_for(main(), 60))
    (line,) = [record for record in caplog.records if record.name == "claude_force_cache"]
    assert "delete it" in line.getMessage()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (b"\xff\xfe", b"12"),
        (b"a b", b"12"),
        (b"0" * 64, b"abc"),
        (b"0" * 64, b"-5"),
        (b"0" * 64, b"9" * 30),
        (None, b"abc"),
    ],
)
def test_a_row_that_no_script_wrote_goes_with_a_listing(
    redis_server: Any, namespace: str, name: Optional[bytes], size: bytes
) -> None:
    prefix = f"cfc:{{{namespace}:0}}:".encode()

    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            async with opened(redis_server, namespace) as cache:
                await cache.set("key", b"answer", tags=["tag"])
                row = name or next(iter(client.hkeys(prefix + b"sizes")))
                client.hset(prefix + b"sizes", row, size)
                client.set(prefix + b"d:" + row, b"planted, and long enough")
                assert (await cache.verify()).consistent
                assert row not in client.hkeys(prefix + b"sizes")
                await use(cache)

    asyncio.run(main())
