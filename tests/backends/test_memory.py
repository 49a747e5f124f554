"""The backend ``memory``: the shared suite, and what only memory promises."""

from __future__ import annotations

from typing import Optional

from accounting import AccountingTests

from claude_force_backends.memory import MemoryBackend
from claude_force_cache import BackendSettings, BackendURL, Clock


class TestMemory(AccountingTests):
    examples = 200

    def make(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> MemoryBackend:
        return MemoryBackend(BackendSettings(BackendURL("memory"), namespace, max_bytes, clock))
