"""The backend ``redis`` on a real cluster and behind real Sentinels, while slots move and masters die."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_force_backends._redis_layout import SLOTS, Layout, slot_of
from claude_force_backends.redis import RedisBackend, claude_force_cache_backend
from claude_force_cache import (
    BackendSettings,
    BackendURL,
    Clock,
    InvalidOptionError,
    InvalidURLError,
)
from claude_force_cache.testing import BackendConformance

PLUGIN = claude_force_cache_backend()


def options_of(given_options: Dict[str, Any]) -> Dict[str, Any]:
    assert set(given_options) <= {option.name for option in PLUGIN.options}
    return {option.name: option.convert(given_options.get(option.name)) for option in PLUGIN.options}


def backend(url: str, namespace: str, max_bytes: Optional[int] = None, **more: Any) -> RedisBackend:
    parsed, given_options = BackendURL.parse(url)
    options = options_of({**given_options, **more})
    return RedisBackend(BackendSettings(parsed, namespace, max_bytes, None, options))


async def account(store: RedisBackend) -> List[int]:
    usage = await store.usage()
    infos = [info async for info in store.scan()]
    assert usage == (len(infos), sum(info.size for info in infos))
    return list(usage)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> float:
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


class TestRedisCluster(BackendConformance):
    max_examples = 8
    capabilities = dataclasses.replace(PLUGIN.capabilities, partitions=4)

    @pytest.fixture(autouse=True)
    def _server(self, redis_cluster: Any) -> Iterator[None]:
        self.cluster_url = redis_cluster.url + "&partitions=4"
        with redis.RedisCluster(host="127.0.0.1", port=redis_cluster.nodes[0].port) as self.client:
            yield

    def settings(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock] = None) -> BackendSettings:
        url, given_options = BackendURL.parse(self.cluster_url)
        options = options_of(dict(given_options))
        return BackendSettings(url, namespace, max_bytes, clock, options)

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


def name_of(store: RedisBackend, key: str) -> str:
    return store._layout.data(store._layout.partition(key), key)


def test_a_cluster_has_sixty_four_partitions_that_its_masters_share_evenly(redis_cluster: Any, namespace: str) -> None:
    async def work() -> None:
        store = backend(redis_cluster.url, namespace, 640_000)
        await store.open()
        assert store.capabilities.partitions == 64
        await store.set_many({f"key-{n}": (bytes(100), 60.0) for n in range(500)})
        assert (await account(store))[0] == 500
        held = [
            sum(first <= slot <= last for slot in store._layout.slots)
            for first, last in [(0, 5460), (5461, 10922), (10923, SLOTS - 1)]
        ]
        assert sum(held) == 64
        assert all(abs(count - 64 / 3) < 2 for count in held)
        assert len(await store.get_many([f"key-{n}" for n in range(600)])) == 500
        assert await store.clear() == 500
        await store.close()

    asyncio.run(work())


NAMESPACES = st.text("abcxyzABCXYZ019._-", min_size=1, max_size=64)


@settings(max_examples=60)
@given(NAMESPACES, st.integers(1, 300), st.data())
def test_any_run_of_slots_holds_its_share_of_partitions_within_two(name: str, partitions: int, data: Any) -> None:
    layout = Layout(name, partitions)
    assert len(set(layout.prefixes)) == partitions
    for prefix, slot in zip(layout.prefixes, layout.slots):
        assert slot == slot_of(prefix[prefix.index("{") + 1 : prefix.index("}")])
    first = data.draw(st.integers(0, SLOTS - 1))
    last = data.draw(st.integers(first, SLOTS - 1))
    held = sum(first <= slot <= last for slot in layout.slots)
    assert abs(held - (last - first + 1) * partitions / SLOTS) < 2


@settings(max_examples=20)
@given(NAMESPACES, st.integers(2, 128), st.sampled_from(["{:064x}", "{}", "key-{:08}", "agent.{:x}.lease"]))
def test_keys_of_any_form_spread_evenly_over_partitions(name: str, partitions: int, form: str) -> None:
    layout = Layout(name, partitions)
    keys = 100 * partitions
    held = [0] * partitions
    for number in range(keys):
        # An odd factor visits every number of 32 bits, so no two keys are equal.
        held[layout.partition(form.format(number * 2654435761 % 2**32))] += 1
    # Six standard deviations of a fair draw of a hundred for each.
    assert all(abs(count - 100) <= 60 for count in held)


def test_layouts_of_different_numbers_have_no_name_in_common() -> None:
    prefixes: Set[str] = set()
    for partitions in (1, 2, 3, 64, 65):
        layout = Layout("answers", partitions)
        assert not prefixes & set(layout.prefixes)
        prefixes |= set(layout.prefixes)


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        ("redis://a,b", InvalidURLError, "topology=cluster"),
        ("redis://a,b/3?topology=cluster", InvalidURLError, "database 3"),
        ("redis://a?topology=ring", InvalidOptionError, "standalone, sentinel, cluster"),
        ("redis://a?topology=sentinel", InvalidOptionError, "sentinel_service"),
        ("redis://a?sentinel_password=hidden-word", InvalidOptionError, "topology=sentinel"),
        ("redis://?topology=cluster&socket_path=/tmp/redis.sock", InvalidOptionError, "socket_path"),
    ],
)
def test_a_url_that_does_not_fit_its_topology_is_refused(url: str, error: Any, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        backend(url, "default")
    assert "hidden-word" not in str(caught.value)


def test_another_number_of_partitions_is_refused_and_none_follows_the_store(redis_server: Any, namespace: str) -> None:
    async def work() -> None:
        first = backend(redis_server.url, namespace, 1000, partitions=5)
        await first.open()
        await first.set("key", b"value", ttl=60)
        with pytest.raises(InvalidOptionError, match="split into 5"):
            await backend(redis_server.url, namespace, 1000, partitions=7).open()
        follower = backend(redis_server.url, namespace, 1000)
        await follower.open()
        assert follower.capabilities.partitions == 5
        assert await follower.get("key") == await first.get("key")
        await follower.close()
        await first.clear()
        await first.close()

    asyncio.run(work())


def test_repartitioning_moves_every_entry_while_others_read(redis_server: Any, namespace: str) -> None:
    items: Dict[str, Tuple[bytes, Optional[float]]] = {
        f"key-{n}": (b"%d" % n * 20, None if n % 2 else 600.0) for n in range(1000)
    }

    async def work() -> None:
        before = backend(redis_server.url, namespace, 10_000_000, partitions=2)
        await before.open()
        await before.set_many(items)
        after = backend(redis_server.url, namespace, 10_000_000, partitions=6, repartition=True)
        opening = asyncio.ensure_future(after.open())
        while not opening.done():
            # Who still has the old number finds its entries or misses them, and finds nothing else.
            found = await before.get_many(list(items)[::50])
            assert all(entry.value == items[key][0] for key, entry in found.items())
        await opening
        assert await account(before) == [0, 0]
        assert await account(after) == [1000, sum(len(key) + len(value) for key, (value, _) in items.items())]
        found = await after.get_many(list(items))
        assert {key: entry.value for key, entry in found.items()} == {key: value for key, (value, _) in items.items()}
        lives = {info.key: info.ttl for info in [i async for i in after.scan()]}
        assert all((lives[key] is None) == (ttl is None) for key, (_, ttl) in items.items())
        assert all(0 < life <= 600 for life in lives.values() if life is not None)
        later = backend(redis_server.url, namespace, 10_000_000)
        await later.open()
        assert later.capabilities.partitions == 6
        await later.clear()
        for store in (before, after, later):
            await store.close()

    asyncio.run(work())


class TestWait:
    """Waiting for a deletion, on one server and on a cluster."""

    @pytest.fixture(params=["standalone", "cluster"])
    def url(self, request: pytest.FixtureRequest) -> str:
        name = {"standalone": "redis_server", "cluster": "redis_cluster"}[request.param]
        url: str = request.getfixturevalue(name).url
        return url

    def test_ends_when_another_process_deletes_the_entry(self, url: str, namespace: str) -> None:
        async def work() -> None:
            here, there = backend(url, namespace), backend(url, namespace)
            await here.open()
            await there.open()
            for turn in range(5):
                await here.set("key", b"value", ttl=60)
                waits = [asyncio.ensure_future(here.wait("key", timeout=30)) for _ in range(20)]
                waits[3].cancel()
                done, _ = await asyncio.wait(waits, timeout=0.1)
                assert len(done) <= 1, f"turn {turn}: they did not wait"
                assert await there.delete("key")
                done, pending = await asyncio.wait(waits, timeout=10)
                assert not pending
                assert [w for w in waits if w.cancelled()] == [waits[3]]
            await here.close()
            await there.close()

        asyncio.run(work())

    def test_does_not_begin_for_what_is_gone_and_ends_with_the_entrys_life(self, url: str, namespace: str) -> None:
        async def work() -> None:
            store = backend(url, namespace)
            await store.open()
            await asyncio.wait_for(store.wait("absent", timeout=30), 10)
            await store.set("short", b"value", ttl=0.2)
            await asyncio.wait_for(store.wait("short", timeout=30), 10)
            await until(lambda: _is_gone(store, "short"))
            await store.close()

        async def _is_gone(store: RedisBackend, key: str) -> bool:
            return await store.get(key) is None

        asyncio.run(work())

    def test_costs_a_few_commands_however_many_wait(self, start_server: Any, namespace: str) -> None:
        server = start_server("redis")

        async def work() -> None:
            store = backend(server.url, namespace)
            await store.open()
            await store.set("key", b"value", ttl=60)
            waits = [asyncio.ensure_future(store.wait("key", timeout=30)) for _ in range(50)]
            await asyncio.wait(waits, timeout=0.2)
            assert await store.delete("key")
            await asyncio.gather(*waits)
            await asyncio.sleep(0)
            calls = {name: fields["calls"] for name, fields in client.info("commandstats").items()}
            await until(_unsubscribed)
            assert calls["cmdstat_pttl"] == 50
            assert calls["cmdstat_subscribe"] == 1
            assert client.client_list(_type="pubsub") == [] or len(client.client_list(_type="pubsub")) == 1
            await store.close()

        async def _unsubscribed() -> bool:
            return client.info("commandstats").get("cmdstat_unsubscribe", {}).get("calls") == 1

        with redis.Redis(port=server.port) as client:
            asyncio.run(work())

    def test_of_a_user_without_channels_polls(self, start_server: Any, namespace: str) -> None:
        server = start_server("redis")
        with redis.Redis(port=server.port) as client:
            rules = ["reset", "on", ">pw", "~cfc:*", "+@read", "+@write", "+@scripting", "+@connection", "+time"]
            client.execute_command("ACL", "SETUSER", "agent", *rules)

        async def work() -> None:
            store = backend(f"redis://agent:pw@{server.host}:{server.port}", namespace)
            await store.open()
            await store.set("key", b"value", ttl=60)
            for _ in range(3):
                await asyncio.wait_for(store.wait("key", timeout=30), 10)
            assert await store.delete("key")
            await store.close()

        asyncio.run(work())
