from __future__ import annotations

from typing import Any, Optional

import pytest
from accounting import AccountingTests

from claude_force_backends.memcached import MemcachedBackend
from claude_force_cache import BackendSettings, BackendURL, Clock


class TestMemcached(AccountingTests):
    examples = 10

    @pytest.fixture(autouse=True)
    def _server(self, memcached_server: Any) -> None:
        self.url, _ = BackendURL.parse(memcached_server.url)

    def make(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> MemcachedBackend:
        return MemcachedBackend(BackendSettings(self.url, namespace, max_bytes, clock))
