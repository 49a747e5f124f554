"""The backend ``memory``: the conformance kit, and what only memory promises."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, Optional

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from claude_force_backends import memory
from claude_force_backends.memory import MemoryBackend, claude_force_cache_backend
from claude_force_cache import BackendSettings, BackendURL, Clock, InvalidURLError
from claude_force_cache.testing import BackendConformance, ManualClock


class TestMemory(BackendConformance):
    capabilities = MemoryBackend.capabilities
    max_examples = 150

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> MemoryBackend:
        return MemoryBackend(self.settings(namespace, max_bytes, clock))

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], MemoryBackend]:
        return functools.partial(MemoryBackend, self.settings(namespace, max_bytes, None))

    async def read_raw(self, backend: MemoryBackend, key: str) -> Optional[bytes]:
        record = backend._records.get(key)
        return None if record is None else record[0]

    async def write_raw(self, backend: MemoryBackend, key: str, data: bytes) -> None:
        _, *others = backend._records[key]
        backend._records[key] = (data, *others)

    def settings(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> BackendSettings:
        return BackendSettings(BackendURL("memory"), namespace, max_bytes, clock)


def opened(max_bytes: Optional[int] = None, clock: Optional[Clock] = None) -> MemoryBackend:
    backend = MemoryBackend(BackendSettings(BackendURL("memory"), "default", max_bytes, clock))
    asyncio.run(backend.open())
    return backend


def test_serves_several_threads_and_event_loops_at_once() -> None:
    backend = opened(500)
    barrier = threading.Barrier(8)

    async def work(number: int) -> bool:
        barrier.wait(10)
        won = await backend.add("lease", b"", ttl=None)
        barrier.wait(10)  # before anybody can evict it
        for turn in range(300):
            await backend.set(f"k{(number + turn) % 7}", bytes(turn), ttl=60)
            await backend.get(f"k{turn % 7}")
            await backend.delete(f"k{turn % 5}")
        return won

    with ThreadPoolExecutor(8) as pool:
        won_the_lease = list(pool.map(lambda number: asyncio.run(work(number)), range(8)))

    async def check() -> None:
        infos = [info async for info in backend.scan()]
        assert await backend.usage() == (len(infos), sum(info.size for info in infos))
        assert (await backend.usage()).bytes <= 500

    asyncio.run(check())
    assert sum(won_the_lease) == 1


def test_remembers_no_more_times_of_expiry_than_it_has_entries() -> None:
    backend = opened()

    async def scenario() -> None:
        for turn in range(5000):
            await backend.set("overwritten", b"value", ttl=1000 + turn)
            await backend.touch("overwritten", ttl=9000 - turn)
            await backend.set(f"deleted{turn}", b"value", ttl=60)
            await backend.delete(f"deleted{turn}")

    asyncio.run(scenario())
    assert len(backend._dues) + len(backend._unswept) < 150


def test_no_write_clears_away_what_many_have_left() -> None:
    """With a limit, most dues are those of entries that were evicted long before."""
    backend = opened(max_bytes=2000 * 10)
    looked, left = [], []

    async def scenario() -> None:
        for turn in range(20_000):
            before = len(backend._unswept)
            # Lives as long as jitter makes them: what is evicted is not what expires next.
            await backend.set(f"k{turn:05}", b"life", ttl=86_400 - turn * 7919 % 8640)
            looked.append(before - len(backend._unswept))
            left.append(len(backend._dues) + len(backend._unswept))

    asyncio.run(scenario())
    assert len(backend._records) == 2000
    assert max(looked) == 4
    assert max(left) < 3 * 2000


class _Swept(RuleBasedStateMachine):
    """What expires does so in time, whatever is outdated, and while the heap is swept."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.backend = opened(clock=self.clock)
        self.model: Dict[str, float] = {}

    @rule(key=st.sampled_from("abcdef"), life=st.integers(1, 9))
    def set(self, key: str, life: int) -> None:
        asyncio.run(self.backend.set(key, b"", ttl=life))
        self.model[key] = self.clock() + life

    @rule(key=st.sampled_from("abcdef"), life=st.integers(1, 9))
    def touch(self, key: str, life: int) -> None:
        if asyncio.run(self.backend.touch(key, ttl=life)):
            self.model[key] = self.clock() + life

    @rule(key=st.sampled_from("abcdef"))
    def delete(self, key: str) -> None:
        asyncio.run(self.backend.delete(key))
        self.model.pop(key, None)

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.model = {key: end for key, end in self.model.items() if end > self.clock()}
        assert asyncio.run(self.backend.usage()).entries == len(self.model)
        assert set(self.backend._records) == set(self.model)

    @invariant()
    def every_life_has_one_due(self) -> None:
        dues = [due for due in (*self.backend._dues, *self.backend._unswept) if self.backend._holds(due)]
        assert sorted(due[1] for due in dues) == sorted(key for key in self.backend._records)


def test_what_expires_does_so_while_the_heap_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SLACK", 0)
    monkeypatch.setattr(memory, "_SWEPT_PER_WRITE", 2)
    run_state_machine_as_test(_Swept, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_clears_expired_entries_away_without_being_asked_for_the_account() -> None:
    clock = ManualClock()
    backend = opened(clock=clock)

    async def scenario() -> None:
        for n in range(1000):
            await backend.set(f"k{n}", b"value", ttl=1)
        clock.advance(1)
        for _ in range(100):
            await backend.set("key", b"value", ttl=None)

    asyncio.run(scenario())
    assert len(backend._records) == 1


def test_evicts_no_living_entry_while_any_number_of_expired_ones_is_left() -> None:
    clock = ManualClock()
    backend = opened(max_bytes=1000, clock=clock)

    async def scenario() -> None:
        await backend.set("living", bytes(94), ttl=None)
        for n in range(90):
            await backend.set(f"k{n:02}", bytes(7), ttl=1)
        clock.advance(1)
        assert await backend.set("new", bytes(897), ttl=None) == 0
        assert await backend.usage() == (2, 1000)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["memory://host", "memory:///path", "memory://user@host", "memory://host:1"])
def test_has_no_place_to_name(url: str) -> None:
    parsed, _ = BackendURL.parse(url)
    with pytest.raises(InvalidURLError, match="write memory://"):
        claude_force_cache_backend().create(BackendSettings(parsed))
