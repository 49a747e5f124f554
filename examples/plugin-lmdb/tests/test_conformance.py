"""The backend under the conformance kit, in folders of its own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Callable, Optional

import pytest
from claude_force_cache import BackendSettings, BackendURL, Clock
from claude_force_cache.testing import BackendConformance

from claude_force_cache_lmdb import CAPABILITIES
from claude_force_cache_lmdb.backend import LmdbBackend


class TestLmdb(BackendConformance):
    capabilities = CAPABILITIES

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "cache"

    def settings(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock] = None) -> BackendSettings:
        # Thousands of writes, each to the disk, would take minutes, and no test cuts the power.
        url = BackendURL("lmdb", path=str(self.folder))
        return BackendSettings(url, namespace, max_bytes, clock, {"sync": False})

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> LmdbBackend:
        return LmdbBackend(self.settings(namespace, max_bytes, clock))

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], LmdbBackend]:
        return functools.partial(LmdbBackend, self.settings(namespace, max_bytes))

    async def read_raw(self, backend: LmdbBackend, key: str) -> Optional[bytes]:
        store = backend.store
        with store.environment.begin() as txn:
            return txn.get(key.encode(), db=store.values)

    async def write_raw(self, backend: LmdbBackend, key: str, data: bytes) -> None:
        store = backend.store
        with store.environment.begin(write=True) as txn:
            txn.put(key.encode(), data, db=store.values)
