"""The backend ``redis``: the conformance kit, and what only a server of its own can show."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Awaitable, Callable, ClassVar, Dict, Iterator, List, Optional

import pytest
import redis

from claude_force_backends._redis_scripts import MOST_READS
from claude_force_backends.redis import RedisBackend, claude_force_cache_backend
from claude_force_cache import (
    AccessDeniedError,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Clock,
    InvalidURLError,
    load_backend,
)
from claude_force_cache.testing import BackendConformance

PLUGIN = claude_force_cache_backend()


def backend(url: str, namespace: str, max_bytes: Optional[int] = None, **options: Any) -> RedisBackend:
    parsed, _ = BackendURL.parse(url)
    return RedisBackend(BackendSettings(parsed, namespace, max_bytes, None, options))


def with_backend(made: RedisBackend, work: Callable[[RedisBackend], Awaitable[Any]]) -> Any:
    """Run ``work`` on the opened backend in an event loop of its own, and clear what it left."""

    async def run() -> Any:
        await made.open()
        try:
            return await work(made)
        finally:
            await made.clear()
            await made.close()

    return asyncio.run(run())


async def account(store: RedisBackend) -> List[int]:
    """Return the usage, after checking that a scan finds the same."""
    usage = await store.usage()
    infos = [info async for info in store.scan()]
    assert usage == (len(infos), sum(info.size for info in infos))
    return list(usage)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


class TestRedis(BackendConformance):
    capabilities = PLUGIN.capabilities
    options: ClassVar[Dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> Iterator[None]:
        self.url, _ = BackendURL.parse(redis_server.url)
        with redis.Redis.from_url(redis_server.url) as self.client:
            yield

    def settings(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock] = None) -> BackendSettings:
        return BackendSettings(self.url, namespace, max_bytes, clock, self.options)

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> RedisBackend:
        return RedisBackend(self.settings(namespace, max_bytes, clock))

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], RedisBackend]:
        return functools.partial(RedisBackend, self.settings(namespace, max_bytes))

    async def expire_natively(self, backend: RedisBackend, key: str) -> None:
        async def dropped() -> bool:
            return not self.client.exists(name_of(backend, key))

        await until(dropped)

    async def read_raw(self, backend: RedisBackend, key: str) -> Optional[bytes]:
        return self.client.get(name_of(backend, key))

    async def write_raw(self, backend: RedisBackend, key: str, data: bytes) -> None:
        self.client.set(name_of(backend, key), data, keepttl=True)


class TestRedisInPartitions(TestRedis):
    max_examples = 15
    capabilities = dataclasses.replace(PLUGIN.capabilities, partitions=3)
    options: ClassVar[Dict[str, Any]] = {"partitions": 3}


def name_of(store: RedisBackend, key: str) -> str:
    return store._layout.data(store._layout.partition(key), key)


def test_is_found_through_its_entry_point() -> None:
    plugin = load_backend("redis")
    assert plugin == claude_force_cache_backend()
    assert plugin.client_installed


def test_entries_expire_by_the_servers_clock_and_free_its_memory(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        await store.set("short", b"value", ttl=0.2)
        await store.set("long", b"value", ttl=3600)
        await store.set("touched", b"value", ttl=3600)
        assert await store.touch("touched", ttl=0.2)
        assert {info.key for info in [i async for i in store.scan()] if info.ttl is not None} == {
            "short",
            "long",
            "touched",
        }

        async def freed() -> bool:
            # Nobody reads the entries: the server itself lets go of them.
            return len(list(client.scan_iter(f"cfc:{{{namespace}:0}}:d:*"))) == 1

        await until(freed)
        assert await store.usage() == (1, len("longvalue"))
        assert await store.get_many(["short", "touched"]) == {}
        assert await account(store) == [1, len("longvalue")]

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace), work)


def test_a_life_of_any_length_is_taken(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        for ttl in (1e-9, 1e9, 1e12, 1e300):
            await store.set("key", b"value", ttl=ttl)
            assert (await store.get("key") is not None) is (ttl > 1)
            await account(store)

    with_backend(backend(redis_server.url, namespace), work)


def test_a_bulk_read_counts_as_uses_in_its_order(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        for name in "abc":
            await store.set(name, b"123456789", ttl=None)
        await store.get_many(["b", "a", "c"])
        for victim in "bac":
            assert await store.set(f"new-{victim}", b"1234", ttl=None) == 1
            assert await store.usage() == (3, 30 - 1 * (3 - await _left(store, "abc")))
            assert victim not in {info.key async for info in store.scan()}

    async def _left(store: RedisBackend, names: str) -> int:
        return len([info async for info in store.scan() if info.key in names])

    with_backend(backend(redis_server.url, namespace, 30), work)


def test_reads_are_noted_in_a_short_list_and_count_before_anything_is_evicted(
    redis_server: Any, namespace: str
) -> None:
    async def work(store: RedisBackend) -> None:
        for name in "abc":
            await store.set(name, b"123456789", ttl=None)
        lengths = []
        for _ in range(8):
            await asyncio.gather(*(store.get_many(["b", "absent", "a"]) for _ in range(40)))
            lengths.append(client.llen(noted))
        assert 0 < max(lengths) < MOST_READS
        for victim in "cba":
            assert await store.set(f"new-{victim}", b"1234", ttl=None) == 1
            assert victim not in {info.key async for info in store.scan()}
            assert client.llen(noted) == 0

    noted = f"cfc:{{{namespace}:0}}:reads"
    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace, 30), work)


def test_any_number_of_uses_is_put_in_order_at_once(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        await store.set("key", b"value", ttl=None)
        assert await store._run([store._call("use", 0, *map(str, range(20_000)))]) == [0]

    with_backend(backend(redis_server.url, namespace), work)


def test_what_a_write_finds_noted_does_not_take_what_it_writes(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        for verb in (store.set, store.add):
            assert await store.get("key") is None
            await verb("key", b"value", ttl=60)
            entry = await store.get("key")
            assert entry is not None
            assert entry.value == b"value"
            assert await store.delete("key")

    with_backend(backend(redis_server.url, namespace, 100), work)


def test_data_that_the_account_does_not_know_goes_with_the_next_write(redis_server: Any, namespace: str) -> None:
    planted = f"cfc:{{{namespace}:0}}:d:planted"

    async def work(store: RedisBackend) -> None:
        client.set(planted, bytes(100))
        await store.get_many(["planted", "key"])
        await store.set("key", b"value", ttl=None)
        assert not client.exists(planted)
        assert await account(store) == [1, 8]

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace), work)


def test_an_entry_ends_with_the_servers_own_millisecond(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        for number in range(50):
            await store.set(f"k{number}", b"", ttl=60 + number * 0.0001)
        for number in range(50):
            name = f"cfc:{{{namespace}:0}}:d:k{number}"
            (expires,) = struct.unpack_from(">d", client.get(name), 8)
            # The server keeps a key through the millisecond that it is given.
            assert client.execute_command("PEXPIRETIME", name) == round(expires * 1000) - 1
            assert expires * 1000 == pytest.approx(round(expires * 1000), abs=0.01)
            assert client.zscore(f"cfc:{{{namespace}:0}}:lives", f"k{number}") == expires

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace), work)


def test_clearing_touches_no_foreign_key(redis_server: Any, namespace: str) -> None:
    foreign = [f"cfc:{{{namespace}x:0}}:d:key", f"cfc:{{{namespace}:00}}:sizes", f"{namespace}", f"cfc:{namespace}"]

    async def work(store: RedisBackend) -> None:
        items = {f"k{n}": (b"value", None) for n in range(2500)}
        await store.set_many(items)
        assert await store.usage() == (2500, sum(len(key) + 5 for key in items))
        assert await store.clear() == 2500
        assert await account(store) == [0, 0]
        assert [client.get(key) for key in foreign] == [b"foreign"] * len(foreign)
        assert list(client.scan_iter(f"cfc:{{{namespace}:0}}*")) == []

    with redis.Redis.from_url(redis_server.url) as client:
        for key in foreign:
            client.set(key, b"foreign")
        with_backend(backend(redis_server.url, namespace), work)
        client.delete(*foreign)


def test_clearing_leaves_no_key_behind(start_server: Any, namespace: str) -> None:
    server = start_server("redis")

    async def work(store: RedisBackend) -> None:
        await store.set("key", b"value", ttl=60)
        assert await store.clear() == 1

    with_backend(backend(server.url, namespace, 1000), work)
    with redis.Redis(host=server.host, port=server.port) as client:
        assert client.keys("*") == [b"cfc:{%b}:partitions" % namespace.encode()]


def test_scripts_that_the_server_forgot_are_sent_again(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        for turn in range(3):
            client.script_flush()
            assert await store.set_many({"a": (b"1", None), "b": (b"2", None)}) == 0
            client.script_flush()
            assert set(await store.get_many(["a", "b", "c"])) == {"a", "b"}
            client.script_flush()
            assert await store.add(f"turn-{turn}", b"", ttl=None)
        assert (await store.usage()).entries == 5

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace), work)


def test_the_servers_own_evictions_leave_the_account(start_server: Any, namespace: str) -> None:
    server = start_server("redis", "--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru")

    async def work(store: RedisBackend) -> None:
        await store.set("kept", b"x" * 1000, ttl=None)
        for n in range(2000):
            await store.set(f"k{n}", os.urandom(2000), ttl=3600)
        assert client.info("stats")["evicted_keys"] > 500
        usage = await store.usage()
        assert usage.entries < 1500
        # A scan may use memory and so evict again, hence the second look at a quiet server.
        client.config_set("maxmemory", 0)
        assert (await account(store))[0] >= 1
        assert (await store.get("kept")) is not None

    with redis.Redis.from_url(server.url) as client:
        with_backend(backend(server.url, namespace), work)


_WRITER = """
import asyncio, random, sys
from claude_force_backends.redis import RedisBackend
from claude_force_cache import BackendSettings, BackendURL

async def main(url, namespace, seed):
    rng = random.Random(seed)
    store = RedisBackend(BackendSettings(BackendURL.parse(url)[0], namespace, 20_000))
    await store.open()
    for turn in range(300):
        await store.set(f"k{rng.randrange(200)}", bytes(rng.randrange(1000)), ttl=rng.choice([None, 0.01, 60]))
        if turn % 7 == 0:
            await store.delete(f"k{rng.randrange(200)}")
    await store.close()
    # Apart and without a limit, since an entry that is evicted may be added again.
    store = RedisBackend(BackendSettings(BackendURL.parse(url)[0], namespace + "-add"))
    await store.open()
    won = [n for n in range(50) if await store.add(f"add-{n}", b"", ttl=None)]
    await store.close()
    print(len(won))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_processes_agree_on_one_account_at_the_limit(redis_server: Any, namespace: str) -> None:
    arguments = [sys.executable, "-c", _WRITER, redis_server.url, namespace]
    writers = [subprocess.Popen([*arguments, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(4)]

    async def work(store: RedisBackend) -> None:
        highest = 0
        while any(writer.poll() is None for writer in writers):
            usage = await store.usage()
            assert 0 <= usage.bytes <= 20_000
            highest = max(highest, usage.bytes)
            await asyncio.sleep(0.002)
        wins = [int(writer.communicate()[0]) for writer in writers]
        assert [writer.returncode for writer in writers] == [0] * 4
        assert sum(wins) == 50
        assert highest > 15_000
        assert (await account(store))[1] <= 20_000

    with_backend(backend(redis_server.url, namespace, 20_000), work)
    with_backend(backend(redis_server.url, namespace + "-add"), account)


def test_a_wrong_password_is_refused_and_never_shown(start_server: Any, namespace: str) -> None:
    server = start_server("redis", "--requirepass", "right-secret")
    wrong = f"redis://:wrong-secret@{server.host}:{server.port}"
    for url in (wrong, f"redis://nobody:wrong-secret@{server.host}:{server.port}", server.url):
        store = backend(url, namespace)
        with pytest.raises(AccessDeniedError) as caught:
            asyncio.run(store.open())
        shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {store!r} {vars(caught.value)}"
        assert f"{server.host}:{server.port}" in str(caught.value)
        assert "secret" not in shown

    async def work(store: RedisBackend) -> None:
        await store.set("key", b"value", ttl=None)
        assert "secret" not in repr(store)

    with_backend(backend(f"redis://:right-secret@{server.host}:{server.port}/3", namespace), work)


def test_a_user_without_permission_is_refused(start_server: Any, namespace: str) -> None:
    server = start_server("redis")
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+get", "+ping", "+mget")

    async def work() -> None:
        store = backend(f"redis://reader:pw@{server.host}:{server.port}", namespace)
        with pytest.raises(AccessDeniedError):
            await store.open()

    asyncio.run(work())


def test_the_permissions_that_the_manual_names_suffice_and_are_all_needed(start_server: Any, namespace: str) -> None:
    server = start_server("redis")
    admin = redis.Redis(host=server.host, port=server.port)
    needed = ["+@read", "+@write", "+@scripting", "+@connection", "+time"]

    async def work(store: RedisBackend) -> None:
        for number in range(20):
            await store.set(f"key{number}", bytes(10), ttl=60)
            assert await store.get(f"key{number}") is not None
            assert await store.delete("key0") is (number == 0)
        assert await account(store) == [8, 8 * 15]

    try:
        for missing in [None, *needed]:
            granted = [rule for rule in needed if rule != missing]
            admin.acl_setuser("agent", enabled=True, reset=True, passwords=["+pw"], keys=["cfc:*"])
            admin.execute_command("ACL", "SETUSER", "agent", *granted)
            made = backend(f"redis://agent:pw@{server.host}:{server.port}/1", namespace, 130)
            if missing is None:
                with_backend(made, work)
            else:
                with pytest.raises(AccessDeniedError):
                    with_backend(made, work)
    finally:
        admin.close()


def test_an_absent_server_is_reported_at_once(absent_server: str, namespace: str) -> None:
    store = backend(f"redis://:secret@{absent_server}", namespace)
    with pytest.raises(BackendUnavailableError, match=absent_server) as caught:
        asyncio.run(store.open())
    assert "secret" not in str(caught.value)


def test_a_silent_server_costs_one_time_out(silent_server: str, namespace: str) -> None:
    async def work() -> None:
        store = backend(f"redis://{silent_server}", namespace, socket_timeout=0.2, pool_size=2)
        store._open = True
        started = time.monotonic()
        # Also those that queue for a connection, and one whose value never leaves the socket's buffer.
        calls = [store.get("key") for _ in range(10)] + [store.set("key", bytes(20_000_000), ttl=None)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, BackendUnavailableError)
            # Ours, or the client's own for connecting, which has the same length and may end first.
            assert "0.2 s" in str(error) or "Timeout connecting" in str(error)
        assert time.monotonic() - started < 5
        await store.close()

    asyncio.run(work())


def test_works_again_when_the_server_is_back(start_server: Any, namespace: str) -> None:
    server = start_server("redis")

    async def work() -> None:
        store = backend(server.url, namespace, 1000)
        await store.open()
        await asyncio.gather(*(store.set(f"k{n}", b"value", ttl=None) for n in range(10)))
        server.stop(sig=signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(BackendUnavailableError, match=f"{server.host}:{server.port}"):
                await store.get("k1")
        server.start()
        assert await store.get("k1") is None
        await store.set("k1", b"value", ttl=None)
        assert await account(store) == [1, 7]
        # A restart that nobody noticed: connections in the pool are dead, and the call goes through.
        server.stop(sig=signal.SIGKILL)
        server.start()
        results = await asyncio.gather(*(store.set(f"k{n}", b"value", ttl=None) for n in range(30)))
        assert results == [0] * 30
        assert (await account(store))[0] == 30
        await store.close()

    asyncio.run(work())


def test_a_frozen_server_times_out_and_thaws(start_server: Any, namespace: str) -> None:
    server = start_server("redis")

    async def work() -> None:
        store = backend(server.url, namespace, socket_timeout=0.2)
        await store.open()
        await store.set("key", b"value", ttl=None)
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(BackendUnavailableError, match=r"did not answer within 0\.2 s"):
                await store.get("key")
        finally:
            server.signal(signal.SIGCONT)

        async def answers() -> bool:
            try:
                entry = await store.get("key")
            except BackendUnavailableError:
                return False
            assert entry is not None
            assert entry.value == b"value"
            return True

        await until(answers)
        await store.close()

    asyncio.run(work())


def test_a_full_server_refuses_writes_and_keeps_the_account(start_server: Any, namespace: str) -> None:
    server = start_server("redis", "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")

    async def work(store: RedisBackend) -> None:
        outcomes = await asyncio.gather(
            *(store.set(f"k{n:04}", os.urandom(20_000), ttl=3600) for n in range(300)), return_exceptions=True
        )
        refusals = [outcome for outcome in outcomes if outcome != 0]
        assert refusals
        assert all(isinstance(error, BackendUnavailableError) and "maxmemory" in str(error) for error in refusals)
        stored = outcomes.count(0)
        assert stored > 10
        assert await account(store) == [stored, stored * 20_005]
        with redis.Redis(host=server.host, port=server.port) as client:
            # What its connections needed is free again, which would be room for another entry.
            client.config_set("maxmemory", "1mb")
        for length in (1, 20_000):
            with pytest.raises(BackendUnavailableError, match="maxmemory"):
                await store.add("new", bytes(length), ttl=None)
        # What needs no memory goes on: reading, ending lives, deleting.
        key = f"k{outcomes.index(0):04}"
        assert await store.get(key) is not None
        with redis.Redis(host=server.host, port=server.port) as client:
            # The use has counted: the newest, and nothing noted that could not be.
            assert client.zrevrange(f"cfc:{{{namespace}:0}}:uses", 0, 0) == [key.encode()]
            assert client.llen(f"cfc:{{{namespace}:0}}:reads") == 0
        assert not await store.add(key, bytes(20_000), ttl=None)
        assert await store.touch(key, ttl=None)
        assert await store.delete(key)
        assert await account(store) == [stored - 1, (stored - 1) * 20_005]

    with_backend(backend(server.url, namespace), work)


@pytest.mark.parametrize("why", ["NOREPLICAS", "MISCONF"])
def test_a_server_that_takes_no_writes_is_read(start_server: Any, namespace: str, why: str) -> None:
    server = start_server("redis", "--dbfilename", "taken")

    async def work(store: RedisBackend) -> None:
        await store.set("kept", b"value", ttl=3600)
        await store.set("damaged", b"value", ttl=3600)
        with redis.Redis(host=server.host, port=server.port) as client:
            client.set(f"cfc:{{{namespace}:0}}:d:damaged", b"x", keepttl=True)
            if why == "NOREPLICAS":
                client.config_set("min-replicas-to-write", 1)
            else:
                # A folder is where the snapshot has to go: not even root can put it there.
                (server.folder / "taken").mkdir()
                client.config_set("save", "3600 1")
                client.bgsave()

                async def failed() -> bool:
                    return bool(client.info("persistence")["rdb_last_bgsave_status"] == "err")

                await until(failed)
            with pytest.raises(BackendUnavailableError, match=why):
                await store.set("new", b"value", ttl=3600)
            entry = await store.get("kept")
            assert entry is not None
            assert entry.value == b"value"
            assert sorted(await store.get_many(["kept", "damaged", "absent"])) == ["kept"]
            client.config_set("min-replicas-to-write", 0)
            client.config_set("save", "")
        assert await store.get("damaged") is None
        assert await account(store) == [1, len("kept") + len("value")]
        assert await store.set("new", b"value", ttl=3600) == 0

    with_backend(backend(server.url, namespace), work)


def test_no_reply_goes_to_the_wrong_caller_after_a_cancellation(redis_server: Any, namespace: str) -> None:
    rng = random.Random(7)

    async def work(store: RedisBackend) -> None:
        names = [f"k{n}" for n in range(50)]
        await store.set_many({name: (name.encode() * 200, None) for name in names})
        wrong = cancelled = answered = 0

        async def read(name: str) -> None:
            nonlocal wrong, cancelled, answered
            try:
                entry = await store.get(name)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            answered += 1
            wrong += entry is None or entry.value != name.encode() * 200

        for _ in range(100):
            tasks = [asyncio.ensure_future(read(rng.choice(names))) for _ in range(40)]
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.004)
            for task in rng.sample(tasks, 20):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert wrong == 0
        assert cancelled > 500
        assert answered > 1500
        # No connection was lost on the way either: as many as the pool has can still work at once.
        assert len(await asyncio.gather(*(store.get(name) for name in names))) == len(names)
        assert await account(store) == [50, sum(len(name) * 201 for name in names)]

    with_backend(backend(redis_server.url, namespace, socket_timeout=5.0, pool_size=5), work)


def test_a_cancelled_write_happened_whole_or_not_at_all(redis_server: Any, namespace: str) -> None:
    rng = random.Random(3)

    async def work(store: RedisBackend) -> None:
        for _ in range(60):
            tasks = [
                asyncio.ensure_future(store.set(f"k{rng.randrange(9)}", bytes(rng.randrange(400)), ttl=None))
                for _ in range(10)
            ]
            for _ in range(rng.randrange(15)):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await account(store))[1] <= 1500

    with_backend(backend(redis_server.url, namespace, 1500), work)


def test_five_hundred_calls_at_once_share_a_few_connections(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        await store.set("key", b"value", ttl=None)
        before = client.info("clients")["connected_clients"]
        entries = await asyncio.gather(*(store.get("key") for _ in range(500)))
        assert {entry and entry.value for entry in entries} == {b"value"}
        assert client.info("clients")["connected_clients"] - before < 8

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace, pool_size=8, socket_timeout=10.0), work)


def test_serves_one_event_loop_after_the_other(redis_server: Any, namespace: str) -> None:
    store = backend(redis_server.url, namespace)
    asyncio.run(store.open())
    asyncio.run(store.set("key", b"value", ttl=None))
    # The loop of the call before is closed, and nothing of it is left to warn of.
    for _ in range(3):
        entry = asyncio.run(store.get("key"))
        assert entry is not None
        assert entry.value == b"value"
    asyncio.run(store.clear())
    asyncio.run(store.close())


def test_serves_event_loops_in_several_threads_at_once(redis_server: Any, namespace: str) -> None:
    store = backend(redis_server.url, namespace)
    asyncio.run(store.open())
    failures: List[BaseException] = []

    async def work(name: str) -> None:
        for turn in range(50):
            await store.set(name, str(turn).encode(), ttl=None)
            entry = await store.get(name)
            assert entry is not None
            assert entry.value == str(turn).encode()

    def run(name: str) -> None:
        try:
            asyncio.run(work(name))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(f"k{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    asyncio.run(store.clear())
    asyncio.run(store.close())


def test_speaks_over_a_unix_socket(start_server: Any, namespace: str, tmp_path: Path) -> None:
    path = str(tmp_path / "redis.sock")
    start_server("redis", "--unixsocket", path)

    async def work(store: RedisBackend) -> None:
        assert await store.add("key", b"value", ttl=None)
        assert path in repr(store)

    with_backend(backend("redis:///2", namespace, socket_path=path), work)


@pytest.mark.parametrize("url", ["redis://a,b", "redis://a/name", "redis://a/0/1", "redis://a/-1"])
def test_a_url_that_names_no_single_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidURLError):
        backend(url, "default")


def test_a_caller_that_is_cancelled_when_its_reply_arrives_is_cancelled(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        async def use_and_stay() -> None:
            await store.set("key", b"value", ttl=None)
            await asyncio.sleep(60)

        for turn in range(100):
            task = asyncio.ensure_future(use_and_stay())
            for _ in range(turn % 20):
                # Short sleeps let the reply arrive, so that some cancellations meet it.
                await asyncio.sleep(0 if turn % 2 else 0.00005)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=10)
            assert done, "the cancellation was forgotten"

    with_backend(backend(redis_server.url, namespace), work)


class TestTLS:
    """A server and a client with certificates of an authority that only this test knows."""

    @pytest.fixture
    def folder(self, certificates: Path) -> Path:
        return certificates

    @pytest.fixture
    def url(self, folder: Path, start_server: Any) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start_server(
            *("redis", "--tls-port", str(port), "--tls-ca-cert-file", str(folder / "authority.crt")),
            *("--tls-cert-file", str(folder / "server.crt"), "--tls-key-file", str(folder / "server.key")),
        )
        return f"redis://127.0.0.1:{port}"

    def options(self, folder: Path, authority: str = "authority", client: Optional[str] = "client") -> Dict[str, Any]:
        files = {"tls_ca_file": str(folder / f"{authority}.crt")}
        if client is not None:
            files.update(tls_cert_file=str(folder / f"{client}.crt"), tls_key_file=str(folder / f"{client}.key"))
        return {"tls": True, **files}

    def test_with_certificates_on_both_sides_works(self, folder: Path, url: str, namespace: str) -> None:
        async def work(store: RedisBackend) -> None:
            large = os.urandom(3_000_000)
            await store.set("key", large, ttl=None)
            entries = await asyncio.gather(*(store.get("key") for _ in range(5)))
            assert all(entry is not None and entry.value == large for entry in entries)
            assert await account(store) == [1, 3 + len(large)]

        with_backend(backend(url, namespace, **self.options(folder), socket_timeout=10.0), work)

    def test_a_server_of_an_unknown_authority_is_refused(self, folder: Path, url: str, namespace: str) -> None:
        store = backend(url, namespace, **self.options(folder, authority="stranger"))
        with pytest.raises(BackendUnavailableError, match=r"(?i)certificate"):
            asyncio.run(store.open())

    def test_a_server_of_another_name_is_refused(self, folder: Path, url: str, namespace: str) -> None:
        store = backend(url.replace("127.0.0.1", "localhost"), namespace, **self.options(folder))
        with pytest.raises(BackendUnavailableError, match=r"(?i)certificate|hostname"):
            asyncio.run(store.open())

    @pytest.mark.parametrize("client", [None, "stranger"])
    def test_a_client_that_the_server_does_not_know_is_told(
        self, folder: Path, url: str, namespace: str, client: Optional[str]
    ) -> None:
        store = backend(url, namespace, **self.options(folder, client=client))
        with pytest.raises(BackendUnavailableError):
            asyncio.run(store.open())

    def test_a_server_without_it_is_not_spoken_to_in_clear(self, redis_server: Any, folder: Path) -> None:
        store = backend(redis_server.url, "default", **self.options(folder), socket_timeout=1.0)
        with pytest.raises(BackendUnavailableError):
            asyncio.run(store.open())

    def test_a_file_that_is_missing_is_named(self, url: str, namespace: str, tmp_path: Path) -> None:
        store = backend(url, namespace, tls=True, tls_ca_file=str(tmp_path / "absent.crt"))
        with pytest.raises(BackendUnavailableError, match=r"No such file"):
            asyncio.run(store.open())


def test_foreign_data_in_the_place_of_an_index_is_removed(redis_server: Any, namespace: str) -> None:
    async def work(store: RedisBackend) -> None:
        await store.set("key", b"value", ttl=None)
        for index in ("sizes", "uses", "lives", "account"):
            name = f"cfc:{{{namespace}:0}}:{index}"
            client.delete(name)
            client.set(name, "foreign")
            await store.set("key", b"value", ttl=5)
            assert await account(store) == [1, 8]

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace, 1000), work)


@pytest.mark.parametrize("spoilt", ["-500", "theirs", "nan"])
def test_an_account_that_somebody_spoilt_is_counted_anew(redis_server: Any, namespace: str, spoilt: str) -> None:
    async def work(store: RedisBackend) -> None:
        await store.set("key", b"value", ttl=None)
        client.hset(f"cfc:{{{namespace}:0}}:account", "bytes", spoilt)
        assert await account(store) == [1, 8]
        await store.set("new", b"value", ttl=None)
        assert await account(store) == [2, 16]

    with redis.Redis.from_url(redis_server.url) as client:
        with_backend(backend(redis_server.url, namespace, 1000), work)
