"""``jar://``: a backend as a third party would write it, in a distribution of its own."""

import threading
import time
from typing import Dict, Hashable, Iterator, List, NamedTuple, Optional

from claude_force_cache import (
    BackendPlugin,
    BackendSettings,
    Capabilities,
    Entry,
    EntryInfo,
    EntryTooLargeError,
    SyncBackend,
    Usage,
    hookimpl,
)

CAPABILITIES = Capabilities(persistent=False, shared_between_processes=False, shared_between_machines=False)


class Kept(NamedTuple):
    value: bytes
    version: int
    expires: Optional[float]


class JarBackend(SyncBackend):
    """A dict, least recently used first. Slow and plain, which is enough for a jar."""

    capabilities = CAPABILITIES

    def __init__(self, settings: BackendSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._clock = settings.clock or time.time
        self._lock = threading.RLock()
        self._kept: Dict[str, Kept] = {}
        self._writes = 0

    def _live(self) -> Dict[str, Kept]:
        now = self._clock()
        for key in [key for key, kept in self._kept.items() if kept.expires is not None and kept.expires <= now]:
            del self._kept[key]
        return self._kept

    def get(self, key: str) -> Optional[Entry]:
        with self._lock:
            kept = self._live().pop(key, None)
            if kept is None:
                return None
            self._kept[key] = kept
            return Entry(kept.value, kept.version)

    def set(self, key: str, value: bytes, *, ttl: Optional[float]) -> int:
        with self._lock:
            size, evicted = len(key) + len(value), 0
            self._live().pop(key, None)
            if self._max_bytes is not None:
                if size > self._max_bytes:
                    raise EntryTooLargeError(size, self._max_bytes)
                while self.usage().bytes + size > self._max_bytes:
                    del self._kept[next(iter(self._kept))]
                    evicted += 1
            self._writes += 1
            self._kept[key] = Kept(value, self._writes, None if ttl is None else self._clock() + ttl)
            return evicted

    def add(self, key: str, value: bytes, *, ttl: Optional[float]) -> bool:
        with self._lock:
            if self.get(key) is not None:
                return False
            self.set(key, value, ttl=ttl)
            return True

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        with self._lock:
            kept = self._live().get(key)
            if kept is None or version not in {None, kept.version}:
                return False
            del self._kept[key]
            return True

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        with self._lock:
            kept = self._live().get(key)
            if kept is None or version not in {None, kept.version}:
                return False
            del self._kept[key]
            self._kept[key] = kept._replace(expires=None if ttl is None else self._clock() + ttl)
            return True

    def scan(self) -> Iterator[EntryInfo]:
        with self._lock:
            now = self._clock()
            found: List[EntryInfo] = [
                EntryInfo(key, len(key) + len(kept.value), None if kept.expires is None else kept.expires - now)
                for key, kept in self._live().items()
            ]
        return iter(found)

    def usage(self) -> Usage:
        with self._lock:
            sizes = [len(key) + len(kept.value) for key, kept in self._live().items()]
        return Usage(len(sizes), sum(sizes))

    def clear(self) -> int:
        with self._lock:
            count = len(self._live())
            self._kept.clear()
            return count

    def ping(self) -> None:
        return None


@hookimpl
def claude_force_cache_backend() -> BackendPlugin:
    return BackendPlugin(
        create=JarBackend,
        url="jar://",
        summary="a dict in the process",
        capabilities=CAPABILITIES,
        api_version=1,
    )
