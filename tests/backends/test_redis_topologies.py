"""The backend ``redis`` on a real cluster and behind real Sentinels, while slots move and masters die."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Awaitable, Callable, Dict, List, Optional, Set, Tuple

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_force_backends._redis_layout import SLOTS, Layout, slot_of
from claude_force_backends.redis import RedisBackend, claude_force_cache_backend
from claude_force_cache import (
    MISSING,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Clock,
    InvalidOptionError,
    InvalidURLError,
    PartlyUnavailableError,
    open_cache,
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


def note(text: str) -> None:
    """Leave a figure in the test's captured output; ``pytest -rP`` shows it."""
    sys.stdout.write(f"{text}\n")


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
    def _server(self, redis_cluster: Any) -> None:
        self.cluster = redis_cluster

    def settings(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock] = None) -> BackendSettings:
        # Six nodes share the processor with the suite: how promptly they answer is not what is checked.
        url, given_options = BackendURL.parse(self.cluster.url + "&partitions=4&socket_timeout=5s")
        options = options_of(dict(given_options))
        return BackendSettings(url, namespace, max_bytes, clock, options)

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> RedisBackend:
        return RedisBackend(self.settings(namespace, max_bytes, clock))

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], RedisBackend]:
        return functools.partial(RedisBackend, self.settings(namespace, max_bytes))

    async def expire_natively(self, backend: RedisBackend, key: str) -> None:
        async def dropped() -> bool:
            return not self.client(backend, key).exists(name_of(backend, key))

        await until(dropped)

    async def read_raw(self, backend: RedisBackend, key: str) -> Optional[bytes]:
        found: Optional[bytes] = self.client(backend, key).get(name_of(backend, key))
        return found

    async def write_raw(self, backend: RedisBackend, key: str, data: bytes) -> None:
        self.client(backend, key).set(name_of(backend, key), data, keepttl=True)

    def client(self, backend: RedisBackend, key: str) -> Any:
        return self.cluster.owner(backend._layout.slots[backend._layout.partition(key)]).client


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

    def test_of_a_user_with_the_rules_that_the_manual_names_hears_the_message(
        self, start_server: Any, namespace: str
    ) -> None:
        server = start_server("redis")
        rules = "reset on >pw ~cfc:* &cfc:* +@read +@write +@scripting +@connection +time +publish +subscribe"
        with redis.Redis(port=server.port) as client:
            client.execute_command("ACL", "SETUSER", "agent", *rules.split(), "+unsubscribe", "+cluster|slots")

            async def work() -> None:
                store = backend(f"redis://agent:pw@{server.host}:{server.port}", namespace)
                await store.open()
                await store.set("key", b"value", ttl=60)
                waiting = asyncio.ensure_future(store.wait("key", timeout=30))
                await asyncio.wait([waiting], timeout=0.2)
                assert not waiting.done()
                assert len(client.client_list(_type="pubsub")) == 1
                assert await store.delete("key")
                await asyncio.wait_for(waiting, 10)
                await store.close()
                await until(nobody_listens)

            async def nobody_listens() -> bool:
                return client.client_list(_type="pubsub") == []

            asyncio.run(work())


class Load:
    """Tasks that read and write through a cache, each with keys of its own, and check every answer."""

    def __init__(self, cache: Any, keys: int = 40) -> None:
        self.cache = cache
        self.keys = keys
        self.slowest = 0.0
        self.hits = self.calls = 0
        self._end = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.ensure_future(self._work(task)) for task in range(8)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end = True
        await asyncio.gather(*self._tasks)

    async def _work(self, task: int) -> None:
        turn = 0
        while not self._end:
            turn += 1
            began = time.monotonic()
            key = f"task-{task}-key-{turn % self.keys}"
            if turn % 7 == 0:
                await self.cache.set(key, {"of": key, "turn": turn})
            else:
                value = await self.cache.get(key)
                if value is not MISSING:
                    self.hits += 1
                    assert value["of"] == key
            self.calls += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(0)


def cache_of(url: str, namespace: str, **more: Any) -> Any:
    # No tier, so that every look-up goes to the store.
    return open_cache(url, secrets="s" * 32, namespace=namespace, tier_bytes=0, **more)


def test_slots_move_while_tasks_read_and_write(redis_cluster: Any, namespace: str) -> None:
    url = redis_cluster.url + "&partitions=6"

    async def work() -> None:
        store = backend(url, namespace, 60_000)
        async with cache_of(url, namespace, max_bytes=60_000) as cache, Load(cache) as load:
            await until(lambda: _grown(load, 2000))

            def move() -> None:
                for slot in Layout(namespace, 6).slots:
                    redis_cluster.move(slot, lambda: time.sleep(0.002))

            with ThreadPoolExecutor(1) as thread:
                await asyncio.get_running_loop().run_in_executor(thread, move)
            hits, calls = load.hits, load.calls
            await until(lambda: _grown(load, calls + 2000))
            assert load.hits > hits + 500
            note(f"slowest call {load.slowest:.3f} s, {load.calls} calls, {cache.stats().errors} not carried out")
        await store.open()
        entries, size = await account(store)
        assert entries > 0
        assert size <= 60_000
        assert await store.clear() == entries
        assert await account(store) == [0, 0]
        await store.close()

    asyncio.run(work())
    left = [name for node in redis_cluster.masters() for name in node.client.scan_iter(f"cfc:{{{namespace}/*")]
    assert left == []


async def _grown(load: Load, calls: int) -> bool:
    return load.calls >= calls


def test_of_a_dead_master_others_go_on_and_its_replica_takes_over(redis_cluster: Any, namespace: str) -> None:
    victim = redis_cluster.owner(Layout(namespace, 6).slots[0])
    url = redis_cluster.url + "&partitions=6"

    async def work() -> None:
        store = backend(url, namespace)
        await store.open()
        names = [f"key-{n}" for n in range(60)]
        await store.set_many({name: (name.encode(), 600.0) for name in names})
        # What a dead master did not tell its replica is lost; that is not what is tried here.
        assert await asyncio.get_running_loop().run_in_executor(None, victim.client.wait, 1, 5000) == 1
        lost = [n for n in names if redis_cluster.owner(store._layout.slots[store._layout.partition(n)]) is victim]
        assert 0 < len(lost) < len(names)
        victim.kill()
        with pytest.raises(PartlyUnavailableError, match=str(victim.port)):
            await store.get(lost[0])
        found = await store.get_many(names)
        assert set(found) == set(names) - set(lost)

        async def recovered() -> bool:
            began = time.monotonic()
            try:
                return len(await store.get_many(names)) == len(names)
            except BackendUnavailableError:
                return False
            finally:
                assert time.monotonic() - began < 5

        seconds = await until(recovered)
        assert await account(store) == [60, sum(2 * len(name) for name in names)]
        note(f"recovered after {seconds:.2f} s")
        await store.clear()
        await store.close()

    try:
        asyncio.run(work())
    finally:
        victim.start()
        redis_cluster.until_well()


def test_a_master_that_dies_fails_no_caller_of_a_cache(redis_cluster: Any, namespace: str) -> None:
    victim = redis_cluster.owner(Layout(namespace, 6).slots[0])

    async def work() -> None:
        async with cache_of(redis_cluster.url + "&partitions=6", namespace) as cache, Load(cache) as load:
            await until(lambda: _grown(load, 2000))
            victim.kill()
            await until(lambda: _all_hit(cache, load))
            note(f"slowest call {load.slowest:.3f} s, {load.calls} calls")
            await cache.clear()

    async def _all_hit(cache: Any, load: Load) -> bool:
        hits, calls = load.hits, load.calls
        await asyncio.sleep(0.2)
        return load.calls > calls and (load.hits - hits) / (load.calls - calls) > 0.75

    try:
        asyncio.run(work())
    finally:
        victim.start()
        redis_cluster.until_well()


def test_a_frozen_node_costs_its_own_keys_and_no_others(redis_cluster: Any, namespace: str) -> None:
    victim = redis_cluster.owner(Layout(namespace, 6).slots[0])

    async def work() -> None:
        store = backend(redis_cluster.url + "&partitions=6", namespace, socket_timeout="300ms")
        await store.open()
        names = [f"key-{n}" for n in range(60)]
        await store.set_many({name: (name.encode(), 600.0) for name in names})
        owners = {name: redis_cluster.owner(store._layout.slots[store._layout.partition(name)]) for name in names}
        theirs = [name for name in names if owners[name] is not victim]
        ours = [name for name in names if owners[name] is victim]
        victim.signal(signal.SIGSTOP)
        try:
            with pytest.raises(PartlyUnavailableError):
                await store.get(ours[0])
            assert len(await store.get_many(theirs)) == len(theirs)
            # Whoever comes next is told at once.
            for name in ours[1:4]:
                with pytest.raises(PartlyUnavailableError):
                    await store.get(name)
        finally:
            victim.signal(signal.SIGCONT)

        async def recovered() -> bool:
            try:
                return len(await store.get_many(names)) >= len(theirs) and await store.get(ours[0]) is not None
            except BackendUnavailableError:
                return False

        await until(recovered)
        await store.clear()
        await store.close()

    asyncio.run(work())
    redis_cluster.until_well()


def test_cancellations_on_a_cluster_give_no_reply_to_the_wrong_caller(redis_cluster: Any, namespace: str) -> None:
    rng = random.Random(11)

    async def work() -> None:
        store = backend(redis_cluster.url, namespace, pool_size=2, socket_timeout="5s")
        await store.open()
        names = [f"key-{n}" for n in range(64)]
        await store.set_many({name: (name.encode() * 100, None) for name in names})

        async def read() -> int:
            asked = rng.sample(names, rng.randrange(1, 20))
            found = await store.get_many(asked)
            assert {name: entry.value for name, entry in found.items()} == {n: n.encode() * 100 for n in asked}
            return len(found)

        cancelled = 0
        for _ in range(60):
            tasks = [asyncio.ensure_future(read()) for _ in range(30)]
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            await asyncio.sleep(rng.choice([0, 0.001, 0.004]))
            for task in rng.sample(tasks, 15):
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, (int, asyncio.CancelledError)) for outcome in outcomes), outcomes
            cancelled += sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert cancelled > 200
        assert len(await asyncio.gather(*(read() for _ in range(1000)))) == 1000
        assert await store.clear() == 64
        await store.close()

    asyncio.run(work())


def test_sentinels_name_the_master_also_after_it_died(watched_redis: Any, namespace: str) -> None:
    async def work() -> None:
        store = backend(watched_redis.url, namespace, socket_timeout="1s")
        await store.open()
        assert watched_redis.password not in f"{store!r}"
        assert store.capabilities.partitions == 1
        await store.set("key", b"value", ttl=600)
        await store.set("gone", b"value", ttl=600)
        waiting = asyncio.ensure_future(store.wait("key", timeout=30))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        assert await asyncio.get_running_loop().run_in_executor(None, watched_redis.master.client.wait, 1, 5000) == 1
        watched_redis.master.kill()
        with pytest.raises(BackendUnavailableError):
            await store.get("key")
        await asyncio.wait_for(waiting, 10)

        async def recovered() -> bool:
            try:
                await store.set("new", b"value", ttl=600)
            except BackendUnavailableError:
                return False
            return True

        seconds = await until(recovered)
        note(f"recovered after {seconds:.2f} s")
        assert await account(store) == [3, len("keyvaluegonevaluenewvalue")]
        # Waiting works at the new master.
        waiting = asyncio.ensure_future(store.wait("gone", timeout=30))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        await store.delete("gone")
        await asyncio.wait_for(waiting, 10)
        await store.close()

    asyncio.run(work())


def test_a_wrong_service_or_password_of_sentinels_is_told_and_not_shown(watched_redis: Any, namespace: str) -> None:
    unknown = watched_redis.url.replace("sentinel_service=answers", "sentinel_service=nobody")
    denied = watched_redis.url.replace(watched_redis.password, "wrong-secret")
    for url, text in [(unknown, "sentinel_service"), (denied, "password")]:
        with pytest.raises(BackendUnavailableError, match=text) as caught:
            asyncio.run(backend(url, namespace).open())
        assert "secret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


def test_a_demoted_master_is_left(start_server: Any, namespace: str) -> None:
    server = start_server("redis")

    async def work() -> None:
        store = backend(server.url, namespace)
        await store.open()
        client.replicaof("127.0.0.1", 1)
        for verb in (store.set("key", b"value", ttl=None), store.get("key"), store.ping()):
            with pytest.raises(BackendUnavailableError, match="read only replica"):
                await verb
        client.replicaof("NO", "ONE")
        await store.ping()
        await store.set("key", b"value", ttl=None)
        await store.close()

    with redis.Redis(port=server.port) as client:
        asyncio.run(work())
