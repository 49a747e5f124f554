"""The backend ``memcached``: the conformance kit, and what only servers of its own can show."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, ClassVar, Dict, Iterator, List, Optional, Set
from urllib.parse import unquote

import pytest
from pymemcache.client.base import Client

from claude_force_backends._memcached_account import _LOCK_SECONDS
from claude_force_backends.memcached import MemcachedBackend, claude_force_cache_backend
from claude_force_cache import (
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Clock,
    EntryInfo,
    EntryTooLargeError,
    InvalidOptionError,
    InvalidURLError,
    load_backend,
)
from claude_force_cache.testing import BackendConformance, check_backend, suite_of_url

PLUGIN = claude_force_cache_backend()

_DAY = 86_400.0


def backend(url: str, namespace: str, max_bytes: Optional[int] = None, **options: Any) -> MemcachedBackend:
    parsed, _ = BackendURL.parse(url)
    return MemcachedBackend(BackendSettings(parsed, namespace, max_bytes, None, options))


@contextmanager
def opened(url: str, namespace: str, max_bytes: Optional[int] = None, **options: Any) -> Iterator[MemcachedBackend]:
    """An open backend, which is cleared and closed in the end."""
    store = backend(url, namespace, max_bytes, **options)
    store.open()
    try:
        yield store
        store.clear()
    finally:
        store.close()


@contextmanager
def plain_client(server: Any) -> Iterator[Any]:
    client = Client((server.host, server.port), default_noreply=False, timeout=5, connect_timeout=5)
    try:
        yield client
    finally:
        client.close()


def account(store: MemcachedBackend) -> List[int]:
    """Return the usage, after checking that a scan finds the same."""
    usage = store.usage()
    infos = list(store.scan())
    assert usage == (len(infos), sum(info.size for info in infos))
    return list(usage)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def epoch_of(client: Any, namespace: str) -> int:
    """Return how often, in effect, a namespace was counted anew."""
    return int(client.get(f"cfc:{namespace}:!account")) >> 40


def counted(client: Any, namespace: str) -> int:
    """Return the bytes that the counter of a namespace vouches for."""
    return int(client.get(f"cfc:{namespace}:!account")) % 2**40


class TestMemcached(BackendConformance):
    capabilities = PLUGIN.capabilities
    max_examples = 20
    options: ClassVar[Dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _server(self, memcached_server: Any) -> Iterator[None]:
        self.url, _ = BackendURL.parse(memcached_server.url)
        with plain_client(memcached_server) as self.client:
            yield

    def settings(self, namespace: str, max_bytes: Optional[int]) -> BackendSettings:
        return BackendSettings(self.url, namespace, max_bytes, None, self.options)

    async def make_backend(
        self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]
    ) -> MemcachedBackend:
        return MemcachedBackend(dataclasses.replace(self.settings(namespace, max_bytes), clock=clock))

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], MemcachedBackend]:
        return functools.partial(MemcachedBackend, self.settings(namespace, max_bytes))

    async def expire_natively(self, backend: MemcachedBackend, key: str) -> None:
        until(lambda: self.client.get(backend._prefix + key) is None)

    async def read_raw(self, backend: MemcachedBackend, key: str) -> Optional[bytes]:
        return self.client.get(backend._prefix + key)

    async def write_raw(self, backend: MemcachedBackend, key: str, data: bytes) -> None:
        self.client.set(backend._prefix + key, data)


class TestMemcachedWithoutSlack(TestMemcached):
    capabilities = dataclasses.replace(PLUGIN.capabilities, eviction_slack=0.0, recency=1.0)
    options: ClassVar[Dict[str, Any]] = {"eviction_slack": 0.0, "recency": 0.0}


def test_entries_end_as_the_kit_says_while_time_passes(memcached_server: Any) -> None:
    """The server's clock cannot be set, so these checks wait for it, side by side. Others would for minutes."""

    async def advance_clock(self: BackendConformance, seconds: float) -> None:
        await asyncio.sleep(seconds)

    suite = type("Waiting", (suite_of_url(memcached_server.url),), {"advance_clock": advance_clock})
    with ThreadPoolExecutor(len(WAITING)) as pool:
        reports = list(pool.map(lambda name: check_backend(suite, checks=[name]), WAITING))
    assert [str(report) for report in reports if not report.of("passed")] == []


WAITING = (
    "size_after_expiry",
    "version_after_expiry",
    "ttl_of_every_verb",
    "ttl_renewed_by_overwrite",
    "ttl_dropped_by_overwrite",
    "ttl_not_renewed_by_reading",
    "ttl_set_by_touch",
    "eviction_count_without_expired",
    "eviction_of_the_expired_first",
)


def test_is_found_through_its_entry_point() -> None:
    plugin = load_backend("memcached")
    assert plugin == claude_force_cache_backend()
    assert plugin.client_installed
    assert not plugin.capabilities.injectable_clock


def test_entries_live_their_life_and_not_much_longer(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace, 1000) as store:
        stored = time.monotonic()
        store.set("set", b"value", ttl=1)
        store.add("add", b"value", ttl=0.5)
        store.set("touched", b"value", ttl=None)
        assert store.touch("touched", ttl=1)
        store.set("checked", b"value", ttl=None)
        entry = store.get("checked")
        assert entry is not None
        assert store.touch("checked", ttl=1, version=entry.version)
        store.set("kept", b"value", ttl=60)
        names = ["set", "add", "touched", "checked", "kept"]
        while True:
            found = set(store.get_many(names))
            age = time.monotonic() - stored
            if age < 1:
                assert found >= {"set", "touched", "checked", "kept"}
            if found == {"kept"}:
                break
            # The server's second may be late under load, on top of what the capabilities say.
            assert age < 1 + store.capabilities.ttl_resolution + 5
            time.sleep(0.02)
        assert account(store) == [1, len("keptvalue")]
        assert not store.touch("set", ttl=None)
        assert not store.delete("add")
        assert store.add("set", b"value", ttl=None)


def test_no_life_ends_early_when_the_servers_clock_steps_by_two(start_server: Any, namespace: str) -> None:
    """Its clock counts whole seconds at ticks that come late on a busy machine, so now and then it leaves one out."""
    server = start_server("memcached")
    with opened(server.url, namespace) as store:
        stored: Dict[str, float] = {}
        for turn in range(5):
            started = time.monotonic()
            while time.monotonic() < started + 0.95:
                key = f"k{turn}-{len(stored)}"
                stored[key] = time.monotonic()
                store.set(key, b"", ttl=1)
                found = store.get_many(list(stored))
                now = time.monotonic()
                ages = [now - since for key, since in stored.items() if key not in found]
                assert min(ages, default=1.0) >= 1
                stored = {key: since for key, since in stored.items() if key in found}
                time.sleep(0.01)
            # The tick that is due a second after the one before comes late.
            server.signal(signal.SIGSTOP)
            time.sleep(0.35)
            server.signal(signal.SIGCONT)


@pytest.mark.parametrize("days", [29.9, 30, 31, 364, 10_000])
def test_long_lives_are_not_taken_for_dates(memcached_server: Any, namespace: str, days: float) -> None:
    with opened(memcached_server.url, namespace) as store:
        store.set("key", b"value", ttl=days * _DAY)
        (info,) = store.scan()
        assert info.ttl is not None
        expected = min(days * _DAY, store.capabilities.max_ttl or 0)
        # Beyond 30 days the server is told a date by our clock, and its own does not follow when ours is set.
        ahead = 0.0
        if days > 30:
            with plain_client(memcached_server) as client:
                ahead = time.time() - int(client.stats()[b"time"])
        assert expected - 2 <= info.ttl - ahead <= expected + store.capabilities.ttl_resolution


def test_clearing_touches_no_foreign_item(memcached_server: Any, namespace: str) -> None:
    foreign = [namespace, f"cfc:{namespace}x:key", f"cfc:{namespace[:-1]}:key", f"xcfc:{namespace}:key"]
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 10**6) as store:
        for name in foreign:
            client.set(name, b"foreign")
        store.set_many({f"k{n}": (b"value", None) for n in range(700)})
        assert store.usage().entries == 700
        assert store.clear() == 700
        assert account(store) == [0, 0]
        assert [client.get(name) for name in foreign] == [b"foreign"] * len(foreign)
        client.delete_many(foreign)


def test_clearing_leaves_no_item_behind(start_server: Any, namespace: str) -> None:
    with opened(start_server("memcached").url, namespace, 1000) as store:
        (server,) = store._servers.values()
        store.set("key", b"value", ttl=60)

        def names() -> Set[str]:
            with server._wire(5) as wire:
                return {unquote(line.split()[0][4:].decode()) for line in server._dump(wire)}

        assert names() == {f"cfc:{namespace}:{name}" for name in ("key", "!account")}
        assert store.clear() == 1
        assert names() == set()
        store.set("key", bytes(900), ttl=60)
        assert store.set("other", bytes(200), ttl=60) == 1
        assert account(store) == [1, 205]


@pytest.mark.parametrize("key", ["k", "k" * 128], ids=["short", "longest"])
@pytest.mark.parametrize("max_bytes", [None, 10**8], ids=["unlimited", "limited"])
def test_a_value_above_the_item_limit_is_refused(
    memcached_server: Any, namespace: str, key: str, max_bytes: Optional[int]
) -> None:
    with opened(memcached_server.url, namespace, max_bytes) as store:
        largest = store.capabilities.max_value_bytes
        assert largest is not None
        store.set("other", b"value", ttl=None)
        store.set(key, bytes(largest), ttl=None)
        entry = store.get(key)
        assert entry is not None
        assert entry.value == bytes(largest)
        with pytest.raises(EntryTooLargeError) as caught:
            store.set(key, bytes(largest + 1), ttl=None)
        assert (caught.value.size, caught.value.limit) == (len(key) + largest + 1, len(key) + largest)
        with pytest.raises(EntryTooLargeError):
            store.add(key, bytes(largest + 1), ttl=None)
        assert list(store.scan()) == [EntryInfo("other", 10, None)]
        assert account(store) == [1, 10]


def test_the_largest_value_is_the_servers_to_say(start_server: Any) -> None:
    # 64 characters, the longest there may be: nothing is left to spare.
    namespace = "n" * 64
    with opened(start_server("memcached", "-I", "4m").url, namespace) as store:
        largest = store.capabilities.max_value_bytes
        assert largest is not None
        assert largest > 4_000_000
        store.set("k" * 128, bytes(largest), ttl=None)
        assert store.usage() == (1, 128 + largest)
        with plain_client_of(store) as client, pytest.raises(Exception, match="too large"):
            client.set(f"cfc:{namespace}:" + "k" * 128, bytes(largest + 8 + 1))


@contextmanager
def plain_client_of(store: MemcachedBackend) -> Iterator[Any]:
    (address,) = store._servers
    host, _, port = address.rpartition(":")
    client = Client((host, int(port)), default_noreply=False, timeout=5, connect_timeout=5)
    try:
        yield client
    finally:
        client.close()


def test_used_entries_outlive_unused_ones(memcached_server: Any, namespace: str) -> None:
    with plain_client(memcached_server) as client:

        def next_second() -> None:
            now = client.stats()[b"time"]
            until(lambda: client.stats()[b"time"] != now)

        with opened(memcached_server.url, namespace, 40, recency=0.0, eviction_slack=0.0) as store:
            assert store.capabilities.recency == 1.0
            for name in "abcd":
                store.set(name, bytes(9), ttl=None)
            next_second()
            next_second()
            # Also the third use of an entry counts, of which the server by itself takes no notice.
            for _ in range(3):
                assert store.get("a") is not None
                next_second()
            assert store.touch("b", ttl=None)
            assert not store.add("c", b"", ttl=None)
            list(store.scan())
            store.usage()
            assert store.set("e", bytes(9), ttl=None) == 1
            assert {info.key for info in store.scan()} == {"a", "b", "c", "e"}
            next_second()
            next_second()
            assert store.set_many({"b": (bytes(9), None), "f": (bytes(9), None)}) == 1
            assert {info.key for info in store.scan()} == {"b", "c", "e", "f"}


def test_a_use_is_told_to_the_server_once_in_its_time(memcached_server: Any, namespace: str) -> None:
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as store:
        store.set("key", b"value", ttl=None)
        _, cas = client.gets(f"cfc:{namespace}:key")
        versions = {entry.version for entry in (store.get("key") for _ in range(5)) if entry}
        assert len(versions) == 1
        assert client.gets(f"cfc:{namespace}:key")[1] == cas
        with opened(memcached_server.url, namespace, 1000) as other:
            # Another process has not told of a use yet; the version does not notice.
            entry = other.get("key")
            assert entry is not None
            assert {entry.version} == versions
            assert client.gets(f"cfc:{namespace}:key")[1] != cas
            assert store.delete("key", version=entry.version)


def test_a_full_cache_is_overwritten_without_evictions(memcached_server: Any, namespace: str) -> None:
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as store:
        for n in range(10):
            assert store.set(f"k{n}", bytes(98), ttl=None) == 0
        assert account(store) == [10, 1000]
        epoch = epoch_of(client, namespace)
        for turn in range(5):
            for n in range(10):
                assert store.set(f"k{n}", bytes([turn]) * 98, ttl=None) == 0
        assert account(store) == [10, 1000]
        # Not even a recount was needed, which would have listed every item.
        assert epoch_of(client, namespace) == epoch
        assert store.set("k0", bytes(48), ttl=None) == 0
        assert store.set("k1", bytes(148), ttl=None) == 0
        assert account(store) == [10, 1000]


def test_an_eviction_frees_no_more_than_the_slack(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace, 10_000, eviction_slack=0.1) as store:
        for n in range(100):
            assert store.set(f"k{n:02}", bytes(97), ttl=None) == 0
        assert store.set("new", bytes(97), ttl=None) == 11
        assert account(store) == [90, 9000]
        for n in range(10):
            assert store.set(f"x{n:02}", bytes(97), ttl=None) == 0
        assert account(store) == [100, 10_000]


def test_an_entry_that_a_recount_missed_is_reserved_again(memcached_server: Any, namespace: str) -> None:
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as store:
        for n in range(5):
            store.set(f"k{n}", bytes(98), ttl=None)
        (ledger,) = store._accounts.values()
        name = f"cfc:{namespace}:late"
        room = ledger.reserve(104)
        assert room is not None
        # Another process recounts between the reservation and the write, and does not see the entry.
        ledger.make_room("", 0)
        assert counted(client, namespace) == 500
        client.set(name, bytes(108))
        assert ledger.settle(room, name, 104) == 0
        assert counted(client, namespace) == 604
        assert account(store) == [6, 604]


@pytest.mark.parametrize("loss", ["missing", "evicted by another"])
def test_a_lost_counter_is_counted_anew(memcached_server: Any, namespace: str, loss: str) -> None:
    counter = f"cfc:{namespace}:!account"
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as store:
        for n in range(10):
            store.set(f"k{n}", bytes(98), ttl=None)
        if loss == "missing":
            client.delete(counter)
        else:
            with opened(memcached_server.url, namespace):
                pass
            store.set("k", bytes(999), ttl=None)
        assert store.set("new", bytes(97), ttl=None) >= 1
        assert account(store)[1] <= 1000
        assert account(store)[1] <= counted(client, namespace) <= 1000


def test_whoever_died_while_making_room_holds_up_nobody_for_long(memcached_server: Any, namespace: str) -> None:
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as store:
        client.set(f"cfc:{namespace}:!lock", b"of the dead", expire=_LOCK_SECONDS)
        client.delete(f"cfc:{namespace}:!account")
        store.set("key", b"value", ttl=None)
        assert account(store) == [1, 8]


def test_the_counter_stays_a_number_that_no_server_takes_for_a_negative_one(
    memcached_server: Any, namespace: str
) -> None:
    counter = f"cfc:{namespace}:!account"
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as store:
        client.set(counter, b"%d" % (2**63 - 2**40 + 1000))
        for n in range(30):
            store.set(f"k{n}", bytes(98), ttl=None)
            assert int(client.get(counter)) < 2**63
        assert epoch_of(client, namespace) < 2**22


def test_namespaces_above_a_new_limit_are_trimmed_at_open(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace) as unlimited:
        for n in range(100):
            unlimited.set(f"k{n:02}", bytes(97), ttl=None)
        with opened(memcached_server.url, namespace, 1000, eviction_slack=0.0) as limited:
            assert account(limited) == [10, 1000]


_WRITER = """
import random, sys
from claude_force_backends._memcached_account import _LOCK_SECONDS
from claude_force_backends.memcached import MemcachedBackend
from claude_force_cache import BackendSettings, BackendURL

url, namespace, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
where = BackendURL.parse(url)[0]
store = MemcachedBackend(BackendSettings(where, namespace, 20_000))
store.open()
for turn in range(200):
    store.set(f"k{rng.randrange(200)}", bytes(rng.randrange(1000)), ttl=rng.choice([None, 60]))
    if turn % 7 == 0:
        store.delete(f"k{rng.randrange(200)}")
store.close()
# Apart and without a limit, since an entry that is evicted may be added again.
store = MemcachedBackend(BackendSettings(where, namespace + "-add"))
store.open()
print(sum(store.add(f"add-{n}", b"", ttl=None) for n in range(50)))
store.close()
"""


def test_processes_agree_on_one_account_at_the_limit(memcached_server: Any, namespace: str) -> None:
    arguments = [sys.executable, "-c", _WRITER, memcached_server.url, namespace]
    with opened(memcached_server.url, namespace, 20_000) as store:
        writers = [subprocess.Popen([*arguments, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(4)]
        highest = 0
        while any(writer.poll() is None for writer in writers):
            usage = store.usage()
            assert 0 <= usage.bytes <= 20_000
            highest = max(highest, usage.bytes)
            time.sleep(0.005)
        wins = [int(writer.communicate()[0] or -1) for writer in writers]
        assert [writer.returncode for writer in writers] == [0] * 4
        assert sum(wins) == 50
        assert highest > 15_000
        with plain_client(memcached_server) as client:
            assert account(store)[1] <= counted(client, namespace) <= 20_000
    with opened(memcached_server.url, namespace + "-add") as store:
        assert account(store)[0] == 50


def test_threads_agree_on_one_account_at_the_limit(memcached_server: Any, namespace: str) -> None:
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 5000) as store:

        def write(seed: int) -> None:
            for n in range(60):
                store.set(f"k{(seed * 37 + n * 11) % 100}", bytes((n * 53 + seed) % 700), ttl=None)
                assert store.usage().bytes <= 5000

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert account(store)[1] <= counted(client, namespace) <= 5000


def test_a_listing_waits_for_the_listings_of_others(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace) as store:
        store.set("key", b"value", ttl=None)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: store.usage(), range(40))) == {(1, 8)}


def test_a_listing_is_complete_while_others_read_and_write(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace, recency=0.0) as store:
        names = [f"k{n:02}" for n in range(20)]
        store.set_many(dict.fromkeys(names, (b"value", None)))
        done = threading.Event()

        def work(seed: int) -> None:
            with plain_client(memcached_server) as client:
                turn = seed
                while not done.is_set():
                    name = f"cfc:{namespace}:{names[turn % 20]}"
                    client.get(name)
                    if turn % 5 == 0:
                        client.set(name, b"8 bytes.value")
                    turn += 1

        with ThreadPoolExecutor(2) as pool:
            workers = [pool.submit(work, seed) for seed in range(2)]
            try:
                usages = {store.usage() for _ in range(100)}
            finally:
                done.set()
            assert [worker.result() for worker in workers] == [None, None]
        assert usages == {(20, 20 * 8)}


def test_five_hundred_calls_on_a_few_threads(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace, 10**6) as store:
        for n in range(50):
            store.set(f"k{n}", str(n).encode(), ttl=None)
        with ThreadPoolExecutor(store.threads) as pool:
            found = list(pool.map(lambda n: (n % 50, store.get(f"k{n % 50}")), range(500)))
        assert all(entry is not None and entry.value == str(n).encode() for n, entry in found)


def test_several_servers_share_entries_and_limit(start_server: Any, namespace: str) -> None:
    servers = [start_server("memcached"), start_server("memcached")]
    url = "memcached://" + ",".join(f"{server.host}:{server.port}" for server in servers)
    with opened(url, namespace, 20_000) as store:
        assert store.capabilities.partitions == 2
        names = [f"k{n:03}" for n in range(100)]
        store.set_many({name: (bytes(6), None) for name in names})
        assert account(store) == [100, 1000]
        with plain_client(servers[0]) as one, plain_client(servers[1]) as two:
            here, there = (len(client.get_many([f"cfc:{namespace}:{n}" for n in names])) for client in (one, two))
            assert here + there == 100
            assert min(here, there) > 20
            assert set(store.get_many(names)) == set(names)
            with pytest.raises(EntryTooLargeError) as caught:
                store.set("large", bytes(10_000), ttl=None)
            assert caught.value.limit == 10_000
            for n in range(300):
                store.set(f"x{n:03}", bytes(96), ttl=None)
            assert account(store)[1] <= 20_000
            assert max(counted(one, namespace), counted(two, namespace)) <= 10_000
        # One is lost and comes back empty: its entries are gone, the others are there, the account is right.
        servers[1].stop(sig=signal.SIGKILL)
        with pytest.raises(BackendUnavailableError, match=str(servers[1].port)):
            store.usage()
        servers[1].start()
        before = account(store)
        assert 0 < before[1] <= 10_000
        for n in range(300):
            store.set(f"y{n:03}", bytes(96), ttl=None)
        assert account(store)[1] <= 20_000
        assert store.clear() > 100


def test_an_absent_server_is_reported_at_once(absent_server: str, namespace: str) -> None:
    store = backend(f"memcached://{absent_server}", namespace)
    with pytest.raises(BackendUnavailableError, match=absent_server):
        store.open()


def test_a_silent_server_costs_one_time_out(silent_server: str, namespace: str) -> None:
    store = backend(f"memcached://{silent_server}", namespace, socket_timeout=0.2)
    started = time.monotonic()
    with pytest.raises(BackendUnavailableError, match=silent_server) as caught:
        store.open()
    assert "0.2 s" in str(caught.value)
    assert time.monotonic() - started < 5


def test_works_again_when_the_server_is_back(start_server: Any, namespace: str) -> None:
    server = start_server("memcached")
    store = backend(server.url, namespace, 1000)
    store.open()
    barrier = threading.Barrier(4)

    def connect(n: int) -> None:
        barrier.wait()
        store.set(f"k{n}", b"value", ttl=None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(connect, range(4)))
    assert account(store) == [4, 28]
    server.stop(sig=signal.SIGKILL)
    for verb in (store.usage, store.ping, lambda: store.get("k1"), lambda: store.set("k1", b"", ttl=None)):
        with pytest.raises(BackendUnavailableError, match=f"{server.host}:{server.port}"):
            verb()
    server.start()
    assert store.get("k1") is None
    assert account(store) == [0, 0]
    for n in range(100):
        store.set(f"k{n:02}", bytes(97), ttl=None)
        assert store.usage().bytes <= 1000
    # A restart that nobody noticed: connections in the pool are dead, and the calls go through.
    server.stop(sig=signal.SIGKILL)
    server.start()
    assert account(store) == [0, 0]
    store.set("key", b"value", ttl=None)
    assert account(store) == [1, 8]
    store.close()


def test_a_frozen_server_times_out_and_thaws(start_server: Any, namespace: str) -> None:
    server = start_server("memcached")
    with opened(server.url, namespace, socket_timeout=0.2) as store:
        store.set("key", b"value", ttl=None)
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(BackendUnavailableError, match=r"did not answer within 0\.2 s"):
                store.get("key")
        finally:
            server.signal(signal.SIGCONT)

        def answers() -> bool:
            try:
                entry = store.get("key")
            except BackendUnavailableError:
                return False
            assert entry is not None
            return entry.value == b"value"

        until(answers)


@pytest.mark.parametrize("url", ["memcached://u:secret@a", "memcached://a/0", "memcached://a,a:11211"])
def test_a_url_that_memcached_has_no_use_for_is_refused(url: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        backend(url, "default")
    assert "secret" not in str(caught.value)


def test_a_clock_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="clock"):
        MemcachedBackend(BackendSettings(BackendURL("memcached"), clock=time.time))


@pytest.mark.parametrize("spoilt", [b"", b"theirs", b"-5", b"9" * 30])
def test_a_counter_that_somebody_spoilt_is_counted_anew_at_open(
    memcached_server: Any, namespace: str, spoilt: bytes
) -> None:
    with plain_client(memcached_server) as client, opened(memcached_server.url, namespace, 1000) as earlier:
        earlier.set("kept", bytes(96), ttl=None)
        client.set(f"cfc:{namespace}:!account", spoilt)
        with opened(memcached_server.url, namespace, 1000) as store:
            assert counted(client, namespace) == 100
            store.set("new", bytes(97), ttl=None)
            assert account(store) == [2, 200]
