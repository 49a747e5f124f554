"""What an author would write to have these backends tested, with every optional hook."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, Optional, Type, Union

from claude_force_cache import Backend, Clock, SyncBackend
from claude_force_cache.testing import BackendConformance

from .reference import DictBackend, SQLiteBackend, Table

__all__ = ["DictConformance", "SQLiteConformance", "suite_of"]


class _RawAccess(BackendConformance):
    """The hooks behind the backend's back, which both backends have as methods."""

    async def expire_natively(self, backend: Any, key: str) -> None:
        backend.drop(key)

    async def read_raw(self, backend: Any, key: str) -> Optional[bytes]:
        data: Optional[bytes] = backend.peek(key)
        return data

    async def write_raw(self, backend: Any, key: str, data: bytes) -> None:
        backend.poke(key, data)


class DictConformance(_RawAccess):
    """Tests a :class:`DictBackend`; subclasses say which, and give it a shelf."""

    capabilities = DictBackend.capabilities
    backend_type: ClassVar[Type[DictBackend]] = DictBackend
    shelf: ClassVar[Dict[str, Table]]

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> DictBackend:
        return self.backend_type(self.shelf, namespace, max_bytes, clock)


class SQLiteConformance(_RawAccess):
    """Tests a :class:`SQLiteBackend`, also from other processes; subclasses say which, and where its file is."""

    capabilities = SQLiteBackend.capabilities
    backend_type: ClassVar[Type[SQLiteBackend]] = SQLiteBackend
    path: Path

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> SQLiteBackend:
        return self.backend_type(self.path, namespace, max_bytes, clock)

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], SQLiteBackend]:
        return functools.partial(self.backend_type, self.path, namespace, max_bytes, None)


def suite_of(backend: Type[Union[Backend, SyncBackend]], folder: Path) -> Type[BackendConformance]:
    """Return the suite for a backend of the zoo, on a store of its own."""
    store = {"shelf": {}, "path": folder / "store.db"}
    base = DictConformance if issubclass(backend, DictBackend) else SQLiteConformance
    more = {"backend_type": backend, "capabilities": backend.capabilities, **store}
    return type(f"Test{backend.__name__}", (base,), more)
