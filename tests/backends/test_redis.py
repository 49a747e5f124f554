from __future__ import annotations

from typing import Any, Optional

import pytest
from accounting import AccountingTests

from claude_force_backends.redis import RedisBackend
from claude_force_cache import BackendSettings, BackendURL, Clock


class TestRedis(AccountingTests):
    examples = 20

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Any) -> None:
        self.url, _ = BackendURL.parse(redis_server.url)

    def make(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> RedisBackend:
        return RedisBackend(BackendSettings(self.url, namespace, max_bytes, clock))
