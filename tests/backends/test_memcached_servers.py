"""Several Memcached servers: one is lost, is silent, comes back; and what a server drops by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_backends._memcached_health import Health
from claude_force_backends.memcached import MemcachedBackend
from claude_force_cache import (
    MISSING,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    BytesCodec,
    Cache,
    PartlyUnavailableError,
    open_cache,
)
from claude_force_cache.testing import check_backend, suite_of_url

KEYS = [f"k{number:03}" for number in range(120)]


def backend(url: str, namespace: str, max_bytes: Optional[int] = None, **options: Any) -> MemcachedBackend:
    parsed, _ = BackendURL.parse(url)
    return MemcachedBackend(BackendSettings(parsed, namespace, max_bytes, None, options))


@contextmanager
def opened(url: str, namespace: str, max_bytes: Optional[int] = None, **options: Any) -> Iterator[MemcachedBackend]:
    store = backend(url, namespace, max_bytes, **options)
    store.open()
    try:
        yield store
    finally:
        store.close()


def url_of(*servers: Any) -> str:
    return "memcached://" + ",".join(f"{server.host}:{server.port}" for server in servers)


def on(store: MemcachedBackend, server: Any, keys: List[str] = KEYS) -> List[str]:
    """Return those of the keys that belong to a server."""
    return [key for key in keys if store._ring.get_node(key) == f"{server.host}:{server.port}"]


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
        time.sleep(0.01)


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    """A server that is silent meanwhile and comes back with what it had."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.parametrize("max_bytes", [None, 10**6], ids=["unlimited", "limited"])
def test_a_lost_server_takes_its_own_keys_with_it_and_no_others(
    start_server: Any, namespace: str, caplog: pytest.LogCaptureFixture, max_bytes: Optional[int]
) -> None:
    servers = [start_server("memcached") for _ in range(3)]
    lost = servers[1]
    with opened(url_of(*servers), namespace, max_bytes, socket_timeout=2, connect_timeout=2) as store:
        store.set_many({key: (key.encode(), None) for key in KEYS})
        theirs = on(store, lost)
        others = [key for key in KEYS if key not in theirs]
        lost.stop(sig=signal.SIGKILL)
        for _ in range(3):
            assert set(store.get_many(KEYS)) == set(others)
            for verb in (
                lambda: store.get(theirs[0]),
                lambda: store.set(theirs[0], b"", ttl=None),
                lambda: store.add(theirs[0], b"", ttl=None),
                lambda: store.touch(theirs[0], ttl=None),
                lambda: store.delete(theirs[0]),
                store.usage,
            ):
                with pytest.raises(PartlyUnavailableError, match=str(lost.port)):
                    verb()
            store.set(others[0], b"new", ttl=None)
            store.ping()
        with pytest.raises(PartlyUnavailableError, match=str(lost.port)):
            store.clear()
        assert store.get_many(KEYS) == {}
        store.set_many(dict.fromkeys(others, (b"new", None)))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(lost.port) in caplog.text
        lost.start()
        # Empty, and of use at once.
        account(store)
        store.set_many(dict.fromkeys(theirs, (b"again", None)))
        found = store.get_many(KEYS)
        assert {found[key].value for key in theirs} == {b"again"}
        assert set(found) == set(KEYS)
        account(store)
        assert len(caplog.records) == 2
        assert caplog.records[1].getMessage() == f"Memcached at {lost.host}:{lost.port} answers again"


def test_two_servers_keep_the_contract_together(start_server: Any) -> None:
    """What depends on how entries are divided; the rest is as with one server, for which the whole kit runs."""
    url = url_of(start_server("memcached"), start_server("memcached")) + "?socket_timeout=2s"
    names = ["capabilities_as_declared", "capability_max_value_bytes", "limit_is_hard", "limit_at_open"]
    names += ["read_in_bulk", "size_of_bulk", "size_after_clear", "concurrent_adds", "scan_of_many"]
    report = check_backend(suite_of_url(url), checks=names)
    assert len(report.of("passed")) == len(names), str(report)


def test_with_no_server_left_the_store_is_not_available(start_server: Any, namespace: str) -> None:
    servers = [start_server("memcached") for _ in range(2)]
    with opened(url_of(*servers), namespace) as store:
        for server in servers:
            server.stop(sig=signal.SIGKILL)
        assert store.get_many(KEYS[:1]) == {}
        for verb in (lambda: store.get_many(KEYS), store.ping, lambda: store.set(KEYS[0], b"", ttl=None), store.usage):
            with pytest.raises(BackendUnavailableError) as caught:
                verb()
            assert type(caught.value) is BackendUnavailableError
        servers[0].start()
        store.ping()
        assert store.get_many(KEYS) == {}
    with pytest.raises(BackendUnavailableError):
        backend("memcached://127.0.0.1:1,127.0.0.1:2", namespace).open()


class Counted:
    """A server that accepts, never answers, and counts how often somebody tried."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host, self.port = self._listener.getsockname()
        self.tries = 0
        self._accepted: List[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._accepted.append(connection)
            if connection.recv(1) == b"!":
                return
            self.tries += 1

    def close(self) -> None:
        with socket.create_connection((self.host, self.port)) as last:
            last.sendall(b"!")
            self._thread.join()
        for connection in (*self._accepted, self._listener):
            connection.close()


def test_a_silent_server_is_asked_once_a_second_while_the_others_serve(start_server: Any, namespace: str) -> None:
    server, silent = start_server("memcached"), Counted()
    try:
        started = time.monotonic()
        with opened(url_of(server, silent), namespace, socket_timeout=0.5) as store:
            good = on(store, server)
            store.set_many(dict.fromkeys(good, (b"value", None)))
            asked = 0
            with ThreadPoolExecutor(store.threads) as pool:
                while time.monotonic() < started + 1.5:
                    for found in pool.map(lambda _: store.get_many(KEYS), range(8)):
                        assert set(found) == set(good)
                        asked += 1
        assert asked > 100
        # Whoever is under way when it falls silent; then one each second.
        assert silent.tries <= store.threads + 1 + (time.monotonic() - started)
    finally:
        silent.close()


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_call_finds_out_whether_a_server_is_back() -> None:
    clock = Time()
    server, other = Health("a:1", clock), Health("b:1", clock)
    server.join([server, other])
    other.join([server, other])

    def refused() -> bool:
        try:
            server.admit()
        except PartlyUnavailableError:
            return True
        return False

    assert not refused()
    assert isinstance(server.failed("silent", 0.1), PartlyUnavailableError)
    assert refused()
    clock.now += 0.99
    assert refused()
    clock.now += 0.01
    assert [refused() for _ in range(3)] == [False, True, True]
    server.failed("silent", 0.1)
    server.lift()
    assert not refused()
    server.worked()
    assert [refused() for _ in range(3)] == [False, False, False]
    # One that refuses at once is tried again soon.
    server.failed("refused", 0.001)
    clock.now += 0.021
    assert not refused()
    assert type(other.failed("silent", 0.1)) is BackendUnavailableError
    alone = Health("c:1", clock)
    alone.failed("silent", 5)
    alone.admit()


def test_a_server_that_was_away_at_the_start_is_brought_within_its_limit(start_server: Any, namespace: str) -> None:
    servers = [start_server("memcached") for _ in range(2)]
    late = servers[1]
    with opened(url_of(*servers), namespace, socket_timeout=2) as unlimited:
        unlimited.set_many({key: (bytes(96), None) for key in KEYS})
        theirs = on(unlimited, late)
        assert len(theirs) > 20
    with frozen(late):
        store = backend(url_of(*servers), namespace, 2000, socket_timeout=0.2)
        store.open()
    try:
        until(lambda: bool(store.get_many(theirs)))
        store.set(theirs[0], bytes(96), ttl=None)
        (ledger,) = (ledger for name, ledger in store._accounts.items() if name == f"{late.host}:{late.port}")
        items = ledger._server.items(ledger._prefix)
        assert 0 < sum(map(ledger.size_of, items)) <= 1000
        assert account(store)[1] <= 2000
    finally:
        store.close()


def test_a_writer_without_a_limit_ends_the_count_also_on_a_server_that_comes_later(
    start_server: Any, namespace: str
) -> None:
    servers = [start_server("memcached") for _ in range(2)]
    with opened(url_of(*servers), namespace, 20_000, socket_timeout=2) as limited:
        limited.set_many({key: (bytes(96), None) for key in KEYS})
        theirs = on(limited, servers[1])
        with frozen(servers[1]):
            unlimited = backend(url_of(*servers), namespace, socket_timeout=0.2)
            unlimited.open()
        try:
            until(lambda: bool(unlimited.get_many(theirs)))
            unlimited.set("new" + theirs[0], bytes(9000), ttl=None)
            unlimited.set(theirs[0], bytes(9000), ttl=None)
            # The count knows nothing of that, so there is none until the next writer has counted.
            ledger = limited._accounts[f"{servers[1].host}:{servers[1].port}"]
            assert ledger._server.call("get", ledger._counter) is None
            limited.set(theirs[1], bytes(96), ttl=None)
            assert sum(map(ledger.size_of, ledger._server.items(ledger._prefix))) <= 10_000
        finally:
            unlimited.close()


def test_whoever_asks_for_the_whole_store_finds_out_at_once_that_a_server_is_back(
    start_server: Any, namespace: str
) -> None:
    servers = [start_server("memcached") for _ in range(2)]
    with opened(url_of(*servers), namespace, socket_timeout=0.5) as store:
        store.set_many(dict.fromkeys(KEYS, (b"value", None)))
        for ask in (store.ping, store.usage):
            with frozen(servers[0]), frozen(servers[1]):
                for _ in range(2):
                    with pytest.raises(BackendUnavailableError):
                        store.get(on(store, servers[0])[0])
                    with pytest.raises(BackendUnavailableError):
                        store.get(on(store, servers[1])[0])
            ask()
            if ask != store.ping:
                assert set(store.get_many(KEYS)) == set(KEYS)


@given(key=st.text("abcdef0123456789.", min_size=1, max_size=64), gone=st.integers(0, 4))
def test_only_the_keys_of_a_server_that_leaves_the_list_move(key: str, gone: int) -> None:
    names = [f"cache{number}:11211" for number in range(5)]
    before = backend(f"memcached://{','.join(names)}", "n")._ring.get_node(key)
    left = [name for name in names if name != names[gone]]
    after = backend(f"memcached://{','.join(reversed(left))}", "n")._ring.get_node(key)
    assert after == before or before == names[gone]


def on_cache(url: str, namespace: str, test: Callable[[Cache[bytes]], Any], **options: Any) -> None:
    async def main() -> None:
        options.setdefault("timeout", 10)
        secret = "a secret of the tests"
        cache = open_cache(url, codec=BytesCodec(), namespace=namespace, secrets=secret, tier_bytes=0, **options)
        async with cache:
            await test(cache)

    asyncio.run(main())


def store_of(cache: Cache[bytes]) -> MemcachedBackend:
    store = cache._backend._backend  # type: ignore[attr-defined]  # in threads
    assert isinstance(store, MemcachedBackend)
    return store


def test_callers_notice_nothing_of_a_lost_server_but_misses(
    start_server: Any, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [start_server("memcached") for _ in range(2)]

    async def test(cache: Cache[bytes]) -> None:
        async def compute() -> bytes:
            return b"made"

        placed = {key: await cache.stored_key(key) for key in range(60)}
        theirs = [key for key, name in placed.items() if on(store_of(cache), servers[1], [name])]
        others = [key for key in placed if key not in theirs]
        servers[1].stop(sig=signal.SIGKILL)
        # Many failures in a row, of stores and of leases; none of them closes the rest of the store.
        for _ in range(2):
            assert [await cache.get_or_compute(key, compute) for key in theirs] == [b"made"] * len(theirs)
        assert cache.stats().hits == 0
        for _ in range(2):
            assert [await cache.get_or_compute(key, compute) for key in others] == [b"made"] * len(others)
        assert cache.stats().hits == cache.stats().stores == len(others)
        servers[1].start()
        await cache.ping()
        for _ in range(2):
            assert [await cache.get_or_compute(key, compute) for key in theirs] == [b"made"] * len(theirs)
        assert cache.stats().hits == len(placed)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 2

    on_cache(url_of(*servers), namespace, test, socket_timeout="2s", connect_timeout="2s")


def test_an_answer_of_five_megabytes_lies_on_three_servers(start_server: Any, namespace: str) -> None:
    servers = [start_server("memcached") for _ in range(3)]

    async def test(cache: Cache[bytes]) -> None:
        value = os.urandom(5_000_000)
        assert await cache.set("key", value)
        assert await cache.get("key") == value
        report = await cache.verify()
        assert (report.consistent, report.entries, report.corrupt, report.remains) == (True, 6, (), ())
        names = [info.key async for info in cache._backend.scan()]
        assert sum(bool(on(store_of(cache), server, names)) for server in servers) > 1

    on_cache(url_of(*servers), namespace, test, socket_timeout="2s")


def test_a_long_answer_outlives_that_one_of_its_servers_is_away(start_server: Any, namespace: str) -> None:
    """A part that cannot be reached is not gone. While it cannot, the answer is a miss."""
    servers = [start_server("memcached") for _ in range(2)]

    async def test(cache: Cache[bytes]) -> None:
        value = os.urandom(5_000_000)
        for number in range(20):
            key = f"key {number}"
            await cache.set(key, value)
            parts = [info.key async for info in cache._backend.scan() if "." in info.key]
            stored = await cache.stored_key(key)
            away = next(server for server in servers if not on(store_of(cache), server, [stored]))
            if on(store_of(cache), away, parts):
                break
            await cache.delete(key)
        with frozen(away):
            assert await cache.get(key) is MISSING
            assert await cache.get(key) is MISSING
        deadline = time.monotonic() + 15
        while await cache.get(key) is MISSING:
            assert time.monotonic() < deadline
        assert await cache.get(key) == value
        assert cache.stats().corrupt == 0

    on_cache(url_of(*servers), namespace, test, socket_timeout="800ms")


def test_a_long_answer_that_cannot_be_stored_whole_leaves_nothing_on_the_other_servers(
    start_server: Any, namespace: str
) -> None:
    servers = [start_server("memcached") for _ in range(2)]

    async def test(cache: Cache[bytes]) -> None:
        there, away = servers
        store = store_of(cache)
        keys = [key for key in range(20) if on(store, away, [await cache.stored_key(key)])]
        with frozen(away):
            for key in keys[:5]:
                assert not await cache.set(key, os.urandom(5_000_000))
            assert store._servers[f"{there.host}:{there.port}"].items(store._prefix) == []
        assert cache.stats().errors == 5

    on_cache(url_of(*servers), namespace, test, socket_timeout="800ms")


def test_an_invalidation_that_a_server_did_not_hear_fails_and_can_be_repeated(
    start_server: Any, namespace: str
) -> None:
    servers = [start_server("memcached") for _ in range(2)]

    async def test(cache: Cache[bytes]) -> None:
        ring, away = cache._vault._rings[0], servers[1]
        tags = [f"t{number}" for number in range(100)]
        ended, other = [tag for tag in tags if on(store_of(cache), away, [ring.tag_name(tag)])][:2]
        for key in range(20):
            await cache.set(key, b"value", tags=[ended])
            await cache.set(-1 - key, b"value", tags=[other])
        with frozen(away):
            with pytest.raises(PartlyUnavailableError):
                await cache.invalidate(ended)
            # Nobody can know whether they were invalidated, so nothing that has one of the tags is used.
            assert [await cache.get(key) for key in range(-20, 20)] == [MISSING] * 40
        deadline = time.monotonic() + 15
        while MISSING in [await cache.get(key) for key in range(-20, 0)]:
            assert time.monotonic() < deadline
        # It may have reached the server after all.
        assert await cache.invalidate(ended) in {0, 1}
        assert [await cache.get(key) for key in range(20)] == [MISSING] * 20
        assert MISSING not in [await cache.get(key) for key in range(-20, 0)]

    on_cache(url_of(*servers), namespace, test, socket_timeout="800ms")


@pytest.mark.parametrize("max_bytes", [None, 8_000_000, 400_000_000], ids=["unlimited", "within", "beyond"])
def test_what_a_server_evicts_by_itself_is_out_of_the_account(
    start_server: Any, namespace: str, max_bytes: Optional[int]
) -> None:
    # The server has room for about 4 MB.
    server = start_server("memcached", "-m", "4")
    value = os.urandom(20_000)
    with opened(server.url, namespace, max_bytes) as store:
        for number in range(700):
            store.set(f"k{number}", value, ttl=None)
        names = [f"k{number}" for number in range(700)]
        found = store.get_many(names)
        assert 0 < len(found) < 600, "it was to evict by itself"
        assert {entry.value for entry in found.values()} == {value}
        usage = account(store)
        assert usage == [len(found), sum(len(name) + len(value) for name in found)]
        # Neither refuses nor lets more in than the limit says.
        for number in range(700, 1000):
            store.set(f"k{number}", value, ttl=None)
            assert store.get(f"k{number}") is not None
        assert account(store)[1] <= (max_bytes or 10**9)


def test_of_many_that_want_a_lease_one_gets_it_also_in_a_full_cache(memcached_server: Any, namespace: str) -> None:
    with opened(memcached_server.url, namespace, 5000) as store, ThreadPoolExecutor(4) as pool:
        for number in range(60):
            store.set(f"k{number:02}", bytes(97), ttl=None)
        for number in range(15):
            lease = f"{number}.lease"
            wins = list(pool.map(lambda n: store.add(lease, b"%d" % n, ttl=6), range(8)))  # noqa: B023 - awaited here
            assert sum(wins) == 1
            entry = store.get(lease)
            assert entry is not None
            assert int(entry.value) == wins.index(True)
            assert store.delete(lease, version=entry.version)
            assert store.get(lease) is None
            assert store.add(lease, b"next", ttl=6)
            assert store.usage().bytes <= 5000
        store.clear()


def test_lives_beyond_a_month_end_when_the_server_says(memcached_server: Any, namespace: str) -> None:
    async def test(cache: Cache[bytes]) -> None:
        lives: Dict[str, Optional[float]] = {"month": 31 * 86_400.0, "year": 365 * 86_400.0, "ever": None}
        for key, life in lives.items():
            await cache.set(key, key.encode(), ttl=life)
            entry = await cache.get_entry(key)
            assert entry is not None
            expected = min(life or 10**9, 365 * 86_400.0)
            assert entry.expires_at is not None
            assert entry.expires_at - entry.created_at == pytest.approx(expected, abs=0.01)
            (info,) = [info async for info in cache._backend.scan() if info.key == entry.key]
            assert info.ttl is not None
            assert expected - 10 <= info.ttl <= expected + 10
        await cache.clear()

    on_cache(memcached_server.url, namespace, test)


def test_the_experiment_with_a_lost_server_runs() -> None:
    arguments = [sys.executable, "-m", "reliability.lost_server", "--seconds", "0.2", "--entries", "100"]
    ran = subprocess.run(arguments, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "as counted: True" in ran.stdout
    assert "5 MB, 3 server(s), 6 entries" in ran.stdout


def test_the_log_says_nothing_of_a_single_server(
    start_server: Any, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server("memcached")
    with caplog.at_level(logging.INFO), opened(server.url, namespace) as store:
        server.stop(sig=signal.SIGKILL)
        with pytest.raises(BackendUnavailableError):
            store.get("key")
        server.start()
        assert store.get("key") is None
    assert caplog.records == []
