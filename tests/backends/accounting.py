"""The shared suite of backends: size accounting, expiry, eviction and versions, against a model.

A backend's test file derives one class and says how to make the backend::

    from accounting import AccountingTests

    class TestMemory(AccountingTests):
        def make(self, namespace, max_bytes, clock):
            return MemoryBackend(BackendSettings(BackendURL("memory"), namespace, max_bytes, clock))

``make`` returns a new, unopened ``Backend`` or ``SyncBackend`` on the store under test; the suite opens and
closes it. Two backends that are made with the same namespace are two handles of the same entries if the
capabilities say that processes share them. The suite uses namespaces of its own, a new one for each example,
and clears them. What the backend cannot do is read from its ``capabilities``; two attributes refine it:

``exact_order``
    Whether eviction through one handle takes exactly the least recently used. By default it is expected
    where ``capabilities.recency`` is 0 and there is one partition. Where False, the suite accepts any victims
    but still requires an exact account, the limit, the survival of what was just written, and no more
    evictions than needed.
``examples``
    How many examples the state machine runs; lower it for a store across a network.

Hypothesis refuses ``@given`` on methods that several classes inherit, hence the inner functions. All work of
one example happens in one event loop, because clients of network stores belong to the loop they were made in.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Dict, Hashable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from claude_force_cache import (
    Backend,
    BackendClosedError,
    Capabilities,
    Clock,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    SyncBackend,
    Usage,
)

AnyBackend = Union[Backend, SyncBackend]

KEYS = ("a", "key.b", "k" * 16)
LIMIT = 100
SECONDS = (1, 2, 3)

_numbers = itertools.count()


class ManualClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Handle:
    """An open backend of either kind, driven by plain calls. ``scan`` returns a list."""

    def __init__(self, backend: AnyBackend, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self._loop = loop

    def _run(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.backend, verb)(*args, **kwargs)
        return self._loop.run_until_complete(result) if isinstance(self.backend, Backend) else result

    def open(self) -> None:
        self._run("open")

    def close(self) -> None:
        self._run("close")

    def get(self, key: str) -> Optional[Entry]:
        return self._run("get", key)

    def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return self._run("get_many", keys)

    def set(self, key: str, value: bytes, *, ttl: Optional[float] = None) -> int:
        return self._run("set", key, value, ttl=ttl)

    def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return self._run("set_many", items)

    def add(self, key: str, value: bytes, *, ttl: Optional[float] = None) -> bool:
        return self._run("add", key, value, ttl=ttl)

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        return self._run("delete", key, version=version)

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return self._run("touch", key, ttl=ttl, version=version)

    def scan(self) -> List[EntryInfo]:
        if isinstance(self.backend, SyncBackend):
            return list(self.backend.scan())

        async def collect() -> List[EntryInfo]:
            return [info async for info in self.backend.scan()]

        return self._loop.run_until_complete(collect())

    def usage(self) -> Usage:
        return self._run("usage")

    def clear(self) -> int:
        return self._run("clear")

    def ping(self) -> None:
        self._run("ping")


class Stage:
    """One namespace of the store under test, for the length of one example, with every handle opened on it."""

    def __init__(self, suite: AccountingTests, max_bytes: Optional[int]) -> None:
        self.suite = suite
        self.max_bytes = max_bytes
        self.namespace = f"kit-{os.getpid()}-{next(_numbers)}"
        self.clock: Optional[ManualClock] = ManualClock() if suite.capabilities.injectable_clock else None
        self._loop = asyncio.new_event_loop()
        self._handles: List[Handle] = []

    def handle(self, *, max_bytes: Union[int, str, None] = "same", namespace: Optional[str] = None) -> Handle:
        limit = self.max_bytes if isinstance(max_bytes, str) else max_bytes
        handle = Handle(self.suite.make(namespace or self.namespace, limit, self.clock), self._loop)
        handle.open()
        self._handles.append(handle)
        return handle

    def advance(self, seconds: float) -> None:
        assert self.clock is not None
        self.clock.advance(seconds)

    def together(self, calls: Sequence[Tuple[str, Handle, Tuple[str, bytes]]]) -> List[Any]:
        """Make all calls ``(verb, handle, (key, value))`` at the same time and return their results in order.

        A blocking backend is called from a thread for each; coroutines meet in the one event loop.
        """
        if isinstance(calls[0][1].backend, Backend):

            async def meet() -> List[Any]:
                return await asyncio.gather(*(getattr(h.backend, verb)(*args, ttl=None) for verb, h, args in calls))

            return self._loop.run_until_complete(meet())
        barrier = threading.Barrier(len(calls))

        def one(call: Tuple[str, Handle, Tuple[str, bytes]]) -> Any:
            verb, handle, args = call
            barrier.wait(10)
            return getattr(handle, verb)(*args)

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(one, calls))

    def close(self) -> None:
        try:
            for handle in self._handles:
                try:
                    handle.clear()
                except BackendClosedError:
                    pass
                handle.close()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


class Known(NamedTuple):
    """What the model knows of one entry; ``write`` tells the writes of one key apart."""

    value: bytes
    expires: Optional[float]
    write: int


class Model:
    """What a perfect backend would hold: an ordered dict, least recently used first, and arithmetic."""

    def __init__(self, max_bytes: int, now: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self._now = now
        self.entries: Dict[str, Known] = {}
        self._writes = itertools.count()

    def purge(self) -> None:
        now = self._now()
        self.entries = {k: e for k, e in self.entries.items() if e.expires is None or now < e.expires}

    def find(self, key: str) -> Optional[Known]:
        self.purge()
        entry = self.entries.get(key)
        if entry is not None:
            self.entries[key] = self.entries.pop(key)
        return entry

    def put(self, key: str, value: bytes, ttl: Optional[float]) -> None:
        self.purge()
        self.entries.pop(key, None)
        self.entries[key] = Known(value, self._expiry(ttl), next(self._writes))

    def touch(self, key: str, ttl: Optional[float]) -> None:
        self.entries[key] = self.entries.pop(key)._replace(expires=self._expiry(ttl))

    def evict(self) -> List[str]:
        """Remove the least recently used until the limit holds, and return them."""
        victims = []
        while self.bytes > self.max_bytes:
            victims.append(next(iter(self.entries)))
            del self.entries[victims[-1]]
        return victims

    @property
    def bytes(self) -> int:
        return sum(size_of(key, entry.value) for key, entry in self.entries.items())

    def _expiry(self, ttl: Optional[float]) -> Optional[float]:
        return None if ttl is None else self._now() + ttl


def size_of(key: str, value: bytes) -> int:
    return len(key) + len(value)


class AccountingMachine(RuleBasedStateMachine):
    """Drives a backend and a model side by side. Few keys, short lives and small steps meet the most often.

    ``clear`` is missing on purpose: it empties the state in which faults would show. It has a test of its own.
    """

    suite: AccountingTests

    keys = st.sampled_from(KEYS)
    # At a limit of 100: some always fit together, some push others out, some only just fit or do not.
    values = st.one_of(
        st.integers(0, 40), st.sampled_from([LIMIT - 17, LIMIT - 16, LIMIT - 5, LIMIT - 1, LIMIT, LIMIT + 1])
    ).map(bytes)
    lives = st.one_of(st.none(), st.sampled_from(SECONDS))

    def __init__(self) -> None:
        super().__init__()
        self.timed = self.suite.capabilities.injectable_clock
        self.exact = self.suite.order_is_exact
        partitions = self.suite.capabilities.partitions
        self.largest = LIMIT
        self.stage = Stage(self.suite, LIMIT * partitions)
        self.one_partition = partitions == 1
        self.handle = self.stage.handle()
        self.model = Model(LIMIT * partitions, lambda: self.stage.clock.now if self.stage.clock else 0.0)
        # Versions that were read, with the write that they belong to.
        self.versions: Dict[str, List[Tuple[Hashable, int]]] = {key: [] for key in KEYS}

    def teardown(self) -> None:
        self.stage.close()

    def life(self, ttl: Optional[float]) -> Optional[float]:
        return ttl if self.timed else None

    @rule(key=keys, value=values, ttl=lives)
    def set(self, key: str, value: bytes, ttl: Optional[float]) -> None:
        ttl = self.life(ttl)
        self.model.put(key, value, ttl)
        if size_of(key, value) > self.largest:
            del self.model.entries[key]
            with pytest.raises(EntryTooLargeError) as caught:
                self.handle.set(key, value, ttl=ttl)
            assert (caught.value.size, caught.value.limit) == (size_of(key, value), self.largest)
        else:
            self.check_evictions(self.handle.set(key, value, ttl=ttl), [key])

    @rule(items=st.dictionaries(keys, st.tuples(values, lives)))
    def set_many(self, items: Dict[str, Tuple[bytes, Optional[float]]]) -> None:
        items = {key: (value, self.life(ttl)) for key, (value, ttl) in items.items()}
        refused = []
        victims = []
        crowded = False
        for key, (value, ttl) in items.items():
            self.model.put(key, value, ttl)
            if size_of(key, value) > self.largest:
                del self.model.entries[key]
                refused.append(size_of(key, value))
            elif self.exact:
                victims += self.model.evict()
            # A later item may be smaller than what it replaces, so that everything fits again in the end.
            crowded = crowded or self.model.bytes > self.model.max_bytes
        if refused:
            with pytest.raises(EntryTooLargeError) as caught:
                self.handle.set_many(items)
            assert caught.value.size in refused
            self.adopt_survivors(crowded=crowded)
        elif self.exact:
            assert self.handle.set_many(items) == len(victims)
        else:
            self.handle.set_many(items)
            self.adopt_survivors(crowded=crowded)

    @rule(key=keys, value=values, ttl=lives)
    def add(self, key: str, value: bytes, ttl: Optional[float]) -> None:
        ttl = self.life(ttl)
        if self.model.find(key) is not None:
            assert self.handle.add(key, value, ttl=ttl) is False
        elif size_of(key, value) > self.largest:
            with pytest.raises(EntryTooLargeError):
                self.handle.add(key, value, ttl=ttl)
        else:
            self.model.put(key, value, ttl)
            assert self.handle.add(key, value, ttl=ttl) is True
            self.check_evictions(None, [key])

    @rule(key=keys)
    def get(self, key: str) -> None:
        self.check_read(key, self.handle.get(key))

    @rule(wanted=st.lists(keys, max_size=4))
    def get_many(self, wanted: List[str]) -> None:
        found = self.handle.get_many(wanted)
        assert set(found) <= set(wanted)
        for key in dict.fromkeys(wanted):
            self.check_read(key, found.get(key))

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.model.purge()
        assert self.handle.delete(key) is (self.model.entries.pop(key, None) is not None)

    @rule(key=keys, ttl=lives)
    def touch(self, key: str, ttl: Optional[float]) -> None:
        self.check_touch(key, self.life(ttl), None)

    @precondition(lambda self: any(self.versions.values()))
    @rule(data=st.data())
    def delete_by_version(self, data: st.DataObject) -> None:
        key, version, write = self.draw_version(data)
        self.model.purge()
        entry = self.model.entries.get(key)
        expected = entry is not None and entry.write == write
        assert self.handle.delete(key, version=version) is expected
        if expected:
            del self.model.entries[key]

    @precondition(lambda self: any(self.versions.values()))
    @rule(data=st.data(), ttl=lives)
    def touch_by_version(self, data: st.DataObject, ttl: Optional[float]) -> None:
        key, version, write = self.draw_version(data)
        self.check_touch(key, self.life(ttl), (version, write))

    @precondition(lambda self: self.timed)
    @rule(seconds=st.sampled_from(SECONDS))
    def wait(self, seconds: int) -> None:
        self.stage.advance(seconds)

    @precondition(lambda self: self.suite.capabilities.persistent)
    @rule()
    def reopen(self) -> None:
        self.handle.close()
        self.handle = self.stage.handle()

    @invariant()
    def account_is_exact(self) -> None:
        self.model.purge()
        infos = self.handle.scan()
        usage = self.handle.usage()
        assert usage == (len(infos), sum(info.size for info in infos))
        assert usage == (len(self.model.entries), self.model.bytes)
        assert usage.bytes <= self.model.max_bytes
        now = self.stage.clock.now if self.stage.clock else None
        expected = {
            key: (size_of(key, entry.value), None if entry.expires is None or now is None else entry.expires - now)
            for key, entry in self.model.entries.items()
        }
        assert {info.key: (info.size, info.ttl) for info in infos} == expected

    def check_read(self, key: str, entry: Optional[Entry]) -> None:
        known = self.model.find(key)
        assert (entry and entry.value) == (known and known.value)
        if entry is not None and known is not None:
            for version, write in self.versions[key]:
                assert (version == entry.version) is (write == known.write)
            if all(write != known.write for _, write in self.versions[key]):
                self.versions[key].append((entry.version, known.write))

    def check_touch(self, key: str, ttl: Optional[float], of: Optional[Tuple[Hashable, int]]) -> None:
        self.model.purge()
        entry = self.model.entries.get(key)
        expected = entry is not None and (of is None or entry.write == of[1])
        assert self.handle.touch(key, ttl=ttl, version=of[0] if of else None) is expected
        if expected and entry is not None:
            self.model.touch(key, ttl)
            # A touch may change the version, so what was read before says nothing any more.
            self.versions[key] = [seen for seen in self.versions[key] if seen[1] != entry.write]

    def check_evictions(self, reported: Optional[int], written: List[str]) -> None:
        if self.exact:
            victims = self.model.evict()
            assert reported in {None, len(victims)}
            return
        gone = self.adopt_survivors()
        assert reported in {None, len(gone)}
        assert not set(written) & set(gone)
        assert self.model.bytes <= self.model.max_bytes
        if gone and self.one_partition and not self.suite.capabilities.eviction_slack:
            assert self.model.bytes + max(size_of(k, e.value) for k, e in gone.items()) > self.model.max_bytes

    def adopt_survivors(self, *, crowded: bool = False) -> Dict[str, Known]:
        """Take over what the backend chose to evict; every other difference is left for the invariant."""
        if self.exact:
            return {}
        present = {info.key for info in self.handle.scan()}
        gone = {key: entry for key, entry in self.model.entries.items() if key not in present}
        if crowded or self.model.bytes > self.model.max_bytes or not self.one_partition:
            for key in gone:
                del self.model.entries[key]
            return gone
        return {}

    def draw_version(self, data: st.DataObject) -> Tuple[str, Hashable, int]:
        seen = [(key, version, write) for key, pairs in self.versions.items() for version, write in pairs]
        return data.draw(st.sampled_from(seen))


class AccountingTests:
    """Derive, name it ``Test...``, and define :meth:`make`; see the module's docstring."""

    examples = 60
    exact_order: Optional[bool] = None

    def make(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> AnyBackend:
        raise NotImplementedError

    @property
    def capabilities(self) -> Capabilities:
        return self.make("capabilities", None, None).capabilities

    @property
    def order_is_exact(self) -> bool:
        if self.exact_order is not None:
            return self.exact_order
        return self.capabilities.recency == 0 and self.capabilities.partitions == 1

    @contextmanager
    def stage(self, max_bytes: Optional[int] = None) -> Iterator[Stage]:
        stage = Stage(self, max_bytes)
        try:
            yield stage
        finally:
            stage.close()

    def limit(self, share: int) -> int:
        """Return the ``max_bytes`` under which every partition holds ``share`` bytes."""
        return share * self.capabilities.partitions

    def require(self, able: bool, weakness: str) -> None:
        """Skip the test of a promise that the backend's capabilities take back, and say which."""
        if not able:
            pytest.skip(f"{type(self).__name__} declares: {weakness}")

    def check(self, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
        """Run the decorated function at once, as a Hypothesis test with these arguments."""

        def run(test: Callable[..., None]) -> None:
            test.__qualname__ = f"{type(self).__qualname__}.{test.__name__}"
            given(**strategies)(settings(max_examples=self.examples, deadline=None, **_UNHURRIED)(test))()

        return run

    def test_agrees_with_the_model_after_every_step(self) -> None:
        machine = type(f"{type(self).__name__}Machine", (AccountingMachine,), {"suite": self})
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=self.examples, stateful_step_count=40, deadline=None, **_UNHURRIED),
        )

    def test_returns_the_bytes_that_were_stored(self) -> None:
        with self.stage() as stage:
            handle = stage.handle()

            @self.check(key=_any_key, value=st.binary(max_size=5000))
            def any_bytes(key: str, value: bytes) -> None:
                handle.set(key, value)
                entry = handle.get(key)
                assert entry is not None
                assert entry.value == value
                assert type(entry.value) is bytes
                assert handle.get_many([key, key]) == {key: entry}

            infos = handle.scan()
            assert handle.usage() == (len(infos), sum(info.size for info in infos))
            assert all(info.size == len(info.key) + len(handle.get(info.key).value) for info in infos)

    def test_counts_only_the_newest_write_of_a_key(self) -> None:
        with self.stage() as stage:
            handle = stage.handle()

            @self.check(sizes=st.lists(st.integers(0, 300), min_size=2, max_size=6))
            def overwrites(sizes: List[int]) -> None:
                for size in sizes:
                    assert handle.set("key", bytes(size)) == 0
                    assert handle.usage() == (1, 3 + size)

    @pytest.mark.parametrize("size", [5, 10, 20, 0], ids=["smaller", "same", "larger", "empty"])
    def test_replaces_an_expired_entry_without_counting_it(self, size: int) -> None:
        self.require(self.capabilities.injectable_clock, "its clock cannot be set")
        with self.stage() as stage:
            handle = stage.handle()
            handle.set("key", bytes(10), ttl=1)
            stage.advance(1)
            handle.set("key", bytes(size))
            assert handle.usage() == (1, 3 + size)
            assert handle.delete("key")
            assert handle.add("key", bytes(10), ttl=1)
            stage.advance(1)
            assert handle.add("key", bytes(size))
            assert handle.usage() == (1, 3 + size)

    def test_deletes_an_entry_once(self) -> None:
        with self.stage() as stage:
            handle = stage.handle()
            assert not handle.delete("key")
            handle.set("key", b"value")
            assert handle.delete("key")
            assert not handle.delete("key")
            assert handle.usage() == (0, 0)

    def test_leaves_a_newer_entry_alone(self) -> None:
        with self.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"value")
            seen = [handle.get("key").version]
            handle.set("key", b"value")
            seen.append(handle.get("key").version)
            handle.delete("key")
            handle.set("key", b"value")
            current = handle.get("key").version
            assert len({*seen, current}) == 3
            for stale in seen:
                assert not handle.delete("key", version=stale)
                assert not handle.touch("key", ttl=60, version=stale)
            assert handle.usage() == (1, 8)
            assert handle.scan() == [EntryInfo("key", 8, None)]
            assert handle.delete("key", version=current)
            assert not handle.delete("key", version=current)
            assert not handle.touch("key", ttl=None, version=current)
            assert handle.usage() == (0, 0)

    def test_ends_a_life_exactly(self) -> None:
        self.require(self.capabilities.injectable_clock, "its clock cannot be set")
        with self.stage() as stage:
            handle = stage.handle()

            @self.check(quarters=st.integers(1, 10_000))
            def edges(quarters: int) -> None:
                ttl = quarters / 4
                handle.set("key", b"value", ttl=ttl)
                version = handle.get("key").version
                stage.advance(ttl - 0.25)
                assert handle.scan() == [EntryInfo("key", 8, 0.25)]
                assert not handle.add("key", b"other")
                assert handle.get("key").value == b"value"
                stage.advance(0.25)
                assert handle.get("key") is None
                assert handle.get_many(["key"]) == {}
                assert handle.scan() == []
                assert not handle.touch("key", ttl=60)
                assert not handle.touch("key", ttl=60, version=version)
                assert not handle.delete("key")
                assert not handle.delete("key", version=version)
                assert handle.usage() == (0, 0)
                assert handle.clear() == 0

    def test_touch_replaces_the_life(self) -> None:
        self.require(self.capabilities.injectable_clock, "its clock cannot be set")
        with self.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"value", ttl=2)
            stage.advance(1)
            assert handle.touch("key", ttl=2)
            stage.advance(1)
            assert handle.scan() == [EntryInfo("key", 8, 1)]
            assert handle.touch("key", ttl=None)
            stage.advance(1_000_000)
            assert handle.touch("key", ttl=1, version=handle.get("key").version)
            stage.advance(1)
            assert handle.get("key") is None
            assert handle.usage() == (0, 0)

    def test_forgets_the_life_of_the_predecessor(self) -> None:
        self.require(self.capabilities.injectable_clock, "its clock cannot be set")
        with self.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"value", ttl=1)
            handle.set("key", b"value")
            stage.advance(2)
            assert handle.usage() == (1, 8)
            handle.set("key", b"value", ttl=1)
            stage.advance(1)
            assert handle.usage() == (0, 0)

    def test_refuses_what_cannot_fit_and_takes_only_its_predecessor(self) -> None:
        with self.stage(self.limit(50)) as stage:
            handle = stage.handle()
            handle.set("a", bytes(9))
            handle.set("b", bytes(9))
            for _ in range(2):
                with pytest.raises(EntryTooLargeError) as caught:
                    handle.set("b", bytes(50))
                assert (caught.value.size, caught.value.limit) == (51, 50)
                assert handle.scan() == [EntryInfo("a", 10, None)]
                assert handle.usage() == (1, 10)
            with pytest.raises(EntryTooLargeError):
                handle.add("c", bytes(50))
            assert not handle.add("a", bytes(50))
            assert handle.usage() == (1, 10)

    def test_takes_an_entry_as_large_as_the_limit(self) -> None:
        with self.stage(self.limit(50)) as stage:
            handle = stage.handle()
            handle.set("a", bytes(49))
            assert handle.usage() == (1, 50)
            assert handle.set("a", bytes(49)) == 0
            assert handle.usage() == (1, 50)

    def test_stores_the_rest_when_one_of_many_is_refused(self) -> None:
        with self.stage(self.limit(50)) as stage:
            handle = stage.handle()
            handle.set("b", b"old")
            with pytest.raises(EntryTooLargeError) as caught:
                handle.set_many({"a": (bytes(4), None), "b": (bytes(60), None), "c": (bytes(4), None)})
            assert caught.value.size == 61
            assert sorted(handle.scan()) == [EntryInfo("a", 5, None), EntryInfo("c", 5, None)]
            assert handle.usage() == (2, 10)

    def test_evicts_the_least_recently_used(self) -> None:
        self.require(self.order_is_exact, "its order of eviction is not exact")
        names = [f"k{n}" for n in range(6)]
        uses = st.lists(st.tuples(st.sampled_from(["get", "set", "touch", "add"]), st.sampled_from(names)))

        @self.check(uses=uses, more=st.integers(1, 5))
        def order(uses: List[Tuple[str, str]], more: int) -> None:
            with self.stage(60) as stage:
                handle = stage.handle()
                for name in names:
                    handle.set(name, bytes(8))
                recency = list(names)
                for verb, name in uses:
                    recency.remove(name)
                    recency.append(name)
                    if verb == "get":
                        assert handle.get(name) is not None
                    elif verb == "touch":
                        assert handle.touch(name, ttl=None)
                    elif verb == "add":
                        assert not handle.add(name, b"")
                    else:
                        assert handle.set(name, bytes(8)) == 0
                    handle.scan()
                assert handle.set("new", bytes(10 * more - 3)) == more
                assert {info.key for info in handle.scan()} == {*recency[more:], "new"}

    def test_evicts_the_expired_before_the_living(self) -> None:
        self.require(self.capabilities.injectable_clock, "its clock cannot be set")
        self.require(self.capabilities.partitions == 1, "its partitions evict apart from each other")
        with self.stage(30) as stage:
            handle = stage.handle()
            handle.set("old", bytes(7))
            handle.set("dead", bytes(6), ttl=1)
            stage.advance(1)
            assert handle.set("new", bytes(17)) == 0
            assert handle.usage() == (2, 30)
            assert handle.get("old") is not None

    def test_clears_its_namespace_and_no_other(self) -> None:
        with self.stage() as stage:
            ours, theirs = stage.handle(), stage.handle(namespace=stage.namespace + "-x")
            assert ours.clear() == 0
            for n in range(20):
                ours.set(f"k{n}", b"ours")
                theirs.set(f"k{n}", b"theirs")
            assert ours.clear() == 20
            assert ours.usage() == (0, 0)
            assert ours.scan() == []
            assert theirs.usage() == (20, sum(len(f"k{n}theirs") for n in range(20)))

    def test_keeps_namespaces_apart(self) -> None:
        with self.stage() as stage:
            lower, upper = stage.handle(namespace=stage.namespace + "a"), stage.handle(namespace=stage.namespace + "A")
            lower.set("key", b"lower")
            assert upper.get("key") is None
            assert not upper.delete("key")
            assert upper.add("key", b"upper")
            assert lower.get("key").value == b"lower"
            assert upper.get("key").value == b"upper"
            assert lower.usage() == upper.usage() == (1, 8)

    def test_adds_once_however_many_ask(self) -> None:
        with self.stage() as stage:
            shared = self.capabilities.shared_between_processes
            first = stage.handle()
            handles = [first, *(stage.handle() if shared else first for _ in range(7))]
            for turn in range(10):
                winners = stage.together([("add", h, (f"k{turn}", bytes([n]))) for n, h in enumerate(handles)])
                assert sorted(winners) == [False] * 7 + [True]
                assert first.get(f"k{turn}").value == bytes([winners.index(True)])
            assert first.usage().entries == 10

    def test_stays_exact_while_many_write(self) -> None:
        with self.stage(self.limit(200)) as stage:
            handle = stage.handle()
            for turn in range(10):
                calls = [("set", handle, (f"k{n % 5}", bytes(7 * n + turn))) for n in range(8)]
                stage.together(calls)
                infos = handle.scan()
                assert handle.usage() == (len(infos), sum(info.size for info in infos))
                assert handle.usage().bytes <= stage.max_bytes
                for info in infos:
                    assert info.size == len(info.key) + len(handle.get(info.key).value)

    def test_shares_one_account_between_handles(self) -> None:
        self.require(self.capabilities.shared_between_processes, "each handle has entries of its own")
        with self.stage(self.limit(100)) as stage:
            one, two = stage.handle(), stage.handle()
            one.set("a", bytes(9))
            two.set("b", bytes(19))
            two.set("a", bytes(29))
            assert one.usage() == two.usage() == (2, 50)
            assert one.delete("b")
            assert two.usage() == (1, 30)
            assert one.get("a").version == two.get("a").version

    def test_keeps_entries_when_it_is_reopened(self) -> None:
        self.require(self.capabilities.persistent, "its entries go at close")
        with self.stage() as stage:
            handle = stage.handle()
            handle.set("a", b"value")
            version = handle.get("a").version
            handle.close()
            handle = stage.handle()
            assert handle.usage() == (1, 6)
            assert handle.get("a") == (b"value", version)

    def test_opens_within_a_lower_limit(self) -> None:
        self.require(self.capabilities.persistent, "its entries go at close")
        with self.stage(self.limit(1000)) as stage:
            handle = stage.handle()
            for n in range(10):
                handle.set(f"k{n}", bytes(8))
            handle.get("k0")
            handle.close()
            handle = stage.handle(max_bytes=self.limit(50))
            infos = handle.scan()
            assert handle.usage() == (len(infos), 10 * len(infos))
            assert handle.usage().bytes <= self.limit(50)
            if self.order_is_exact:
                assert {info.key for info in infos} == {"k0", "k6", "k7", "k8", "k9"}

    def test_raises_when_it_is_used_after_close(self) -> None:
        with self.stage() as stage:
            handle = stage.handle()
            handle.ping()
            handle.close()
            handle.close()
            for verb in (handle.ping, handle.scan, handle.usage, handle.clear):
                with pytest.raises(BackendClosedError):
                    verb()
            for verb in (handle.get, handle.delete):
                with pytest.raises(BackendClosedError):
                    verb("key")
            for verb in (handle.set, handle.add):
                with pytest.raises(BackendClosedError):
                    verb("key", b"value")
            with pytest.raises(BackendClosedError):
                handle.touch("key", ttl=None)


_any_key = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=128)

# The store decides how long an example takes, not the strategy.
_UNHURRIED: Dict[str, Any] = {"suppress_health_check": [HealthCheck.too_slow]}
