"""The backend ``disk``: the shared suite, and what a folder that others can reach demands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Optional

import pytest
from accounting import AccountingTests

from claude_force_backends.disk import DiskBackend, claude_force_cache_backend
from claude_force_cache import BackendSettings, BackendURL, Clock


def make_disk(
    folder: Path,
    namespace: str = "default",
    max_bytes: Optional[int] = None,
    clock: Optional[Clock] = None,
    **options: Any,
) -> DiskBackend:
    url = BackendURL("disk", path=str(folder))
    backend = claude_force_cache_backend().create(BackendSettings(url, namespace, max_bytes, clock, options))
    assert isinstance(backend, DiskBackend)
    return backend


class TestDisk(AccountingTests):
    # Through one handle; the declared recency is what other processes see.
    exact_order = True

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path / "cache"
        yield

    def make(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> DiskBackend:
        return make_disk(self.folder, namespace, max_bytes, clock)
