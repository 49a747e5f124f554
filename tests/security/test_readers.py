"""Somebody reads a whole store, byte by byte: with encryption he learns neither requests nor answers."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterator, List
from urllib.parse import urlsplit

import pytest
import redis
from pymemcache.client.base import Client

from claude_force_cache import BytesCodec, open_cache

PLANTED = {
    "key": "planted-in-the-request",
    "answer": "planted-in-the-answer",
    "tag": "planted-in-a-tag",
    "tenant": "planted-as-tenant",
    "secret": "planted-as-a-secret-of-32-letters",
}


def of_disk(url: str) -> Iterator[bytes]:
    folder = Path(urlsplit(url).path)
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)).encode()
        if path.is_file():
            yield path.read_bytes()


def of_redis(url: str) -> Iterator[bytes]:
    read: Dict[bytes, Any] = {
        b"string": lambda client, key: [client.get(key)],
        b"hash": lambda client, key: [part for pair in client.hgetall(key).items() for part in pair],
        b"zset": lambda client, key: client.zrange(key, 0, -1),
        b"set": lambda client, key: client.smembers(key),
        b"list": lambda client, key: client.lrange(key, 0, -1),
    }
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            yield key
            yield from read[client.type(key)](client, key)


def of_memcached(url: str) -> Iterator[bytes]:
    with closing(Client(urlsplit(url).netloc)) as client:
        listing = client.raw_command("lru_crawler metadump hash", end_tokens=b"END\r\n")
        for line in listing.splitlines():
            if line.startswith(b"key="):
                name = line.split()[0][len(b"key=") :]
                yield name
                yield client.get(name.replace(b"%3A", b":").decode(), b"")


READERS = {"disk": of_disk, "redis": of_redis, "memcached": of_memcached}


@pytest.fixture(params=["disk", "redis", "memcached"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path, start_server: Any) -> str:
    """The URL of a store that nobody else has written to: all of it is read."""
    return f"disk://{tmp_path}/cache" if request.param == "disk" else str(start_server(request.param).url)


async def fill(url: str, namespace: str, *, encrypt: bool) -> None:
    cache = open_cache(
        url,
        namespace=namespace,
        tenant=PLANTED["tenant"],
        secrets=[PLANTED["secret"]],
        codec=BytesCodec(),
        encrypt=encrypt,
        compress=False,
        timeout=5,
    )
    async with cache:
        await cache.clear()
        for number in range(20):
            key = [PLANTED["key"], number]
            assert await cache.set(key, PLANTED["answer"].encode() * (1 + number * 50), tags=[PLANTED["tag"]])
        # A reader may come while an answer is being made, and sees its lease then.
        made = asyncio.Event()

        async def compute() -> bytes:
            await made.wait()
            return PLANTED["answer"].encode()

        waiting = asyncio.ensure_future(cache.get_or_compute([PLANTED["key"], "made"], compute))
        try:
            await asyncio.wait([waiting], timeout=0.05)
        finally:
            made.set()
        assert await waiting == PLANTED["answer"].encode()


def seen(url: str, namespace: str, *, encrypt: bool) -> List[str]:
    asyncio.run(fill(url, namespace, encrypt=encrypt))
    raw = list(READERS[urlsplit(url).scheme](url))
    assert sum(map(len, raw)) > 20 * len(PLANTED["answer"]), "the reader does not see the store"
    return [what for what, planted in PLANTED.items() if any(planted.encode() in part for part in raw)]


def test_an_encrypted_store_shows_no_request_answer_tag_tenant_or_secret(own_url: str, namespace: str) -> None:
    assert seen(own_url, namespace, encrypt=True) == []


def test_a_store_that_is_only_sealed_shows_the_answers_and_tags(own_url: str, namespace: str) -> None:
    """The same reader finds what is there to be found; without this the test above could not fail."""
    assert seen(own_url, namespace, encrypt=False) == ["answer", "tag"]
