"""A cache on the backend under test, for the checks of damage."""

from __future__ import annotations

from typing import Any, AsyncIterator, Coroutine, Dict, Hashable, Mapping, Optional, Tuple, TypeVar

from .._backend import Backend, Entry, EntryInfo, Usage
from .._open import open_cache
from .._results import MISSING
from ._handle import Handle
from ._stage import Stage

__all__ = ["ANSWER", "Late", "Sealed"]

T = TypeVar("T")

_SECRET = "the secret of the conformance kit"  # noqa: S105 - seals nothing but the kit's own entries
ANSWER = {"answer": "forty-two, and some more text to damage"}
_OTHER = {"answer": "another"}


class Sealed:
    """A cache on a stage's backend, driven by plain calls, with one answer in it and another beside it."""

    def __init__(self, stage: Stage, handle: Handle, wrapped: Optional[Backend] = None) -> None:
        self.stage = stage
        self.handle = handle
        clock: Dict[str, Any] = {} if stage.clock is None else {"clock": stage.clock}
        # No tier and no hurry: every look has to reach the store, also on a slow machine.
        backend = wrapped or stage.view(handle)
        self._cache = open_cache(backend, secrets=_SECRET, tier_bytes=0, timeout=60, compress=False, **clock)
        stage.at_end(self._cache.close)
        self.set("question", ANSWER)
        self.set("other", _OTHER)
        self.name = self.name_of("question")
        self.other_name = self.name_of("other")

    def set(self, question: str, answer: object, ttl: Optional[float] = None) -> None:
        self._run(f"cache.set({question!r})", self._cache.set(question, answer, ttl=ttl))
        self.stage.note(f"cache.set({question!r})")

    def get(self, question: str) -> object:
        answer = self._run(f"cache.get({question!r})", self._cache.get(question))
        self.stage.note(f"cache.get({question!r}) -> {answer!r}")
        return answer

    def name_of(self, question: str) -> str:
        entry = self._run(f"cache.get({question!r})", self._cache.get_entry(question))
        if entry is None:
            self.stage.fail(f"cache.get({question!r}) misses what was just stored")
        return entry.key

    def sealed(self) -> bytes:
        value = self.handle.value(self.name)
        if not value:
            self.stage.fail(f"get of what the cache just stored is {value!r}")
        return value

    def _run(self, call: str, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self.stage.run(work)
        except Exception as error:
            raise self.stage.failure(f"{call} raised {type(error).__name__}: {error}") from error

    @property
    def corrupt(self) -> int:
        return self._cache.stats().corrupt

    def expect_discarded(self, times: int = 1) -> None:
        """Fail unless the question is a miss, its entry gone and counted once, and everything else as before."""
        stage, (entries, size) = self.stage, self.handle.usage()
        damaged = len(self.name) + len(self.handle.value(self.name) or b"")
        stage.account(self.handle, entries, size)
        stage.expect("cache.get of a damaged entry", self.get("question"), MISSING)
        stage.expect("the number of corrupt entries that the cache counted", self.corrupt, times)
        stage.expect("get of what was damaged", self.handle.get(self.name), None)
        stage.account(self.handle, entries - 1, size - damaged)
        stage.expect("cache.get again", self.get("question"), MISSING)
        stage.expect("the number of corrupt entries that the cache counted", self.corrupt, times)
        stage.account(self.handle, entries - 1, size - damaged)

    def expect_well(self) -> None:
        """Fail unless the other answer is untouched and the question can be answered anew."""
        self.stage.expect("cache.get of another entry", self.get("other"), _OTHER)
        self.set("question", ANSWER)
        self.stage.expect("cache.get after a new answer was stored", self.get("question"), ANSWER)
        self.stage.account(self.handle)


class Late(Backend):
    """A backend on which something arrives just before the next delete by version."""

    def __init__(self, backend: Backend) -> None:
        self.capabilities = backend.capabilities
        self.arrives: Optional[Tuple[str, bytes]] = None
        self._backend = backend

    async def get(self, key: str) -> Optional[Entry]:
        return await self._backend.get(key)

    async def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        return await self._backend.set(key, value, ttl=ttl)

    async def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return await self._backend.set_many(items)

    async def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        return await self._backend.add(key, value, ttl=ttl)

    async def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        if version is not None and self.arrives is not None:
            arriving, self.arrives = self.arrives, None
            await self._backend.set(*arriving, ttl=None)
        return await self._backend.delete(key, version=version)

    async def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        return await self._backend.touch(key, ttl=ttl, version=version)

    async def scan(self) -> AsyncIterator[EntryInfo]:
        async for info in self._backend.scan():
            yield info

    async def usage(self) -> Usage:
        return await self._backend.usage()

    async def clear(self) -> int:
        return await self._backend.clear()

    async def ping(self) -> None:
        await self._backend.ping()
