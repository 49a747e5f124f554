"""The SDK's clients: one for each event loop, made in a thread, closed with the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, AsyncGenerator, Callable, Dict, Optional

import anyio.to_thread

from ._errors import AuthenticationError, ConfigError, OrchestratorError
from ._settings import check_api_key

__all__ = ["Clients", "make_client"]


def make_client(api_key: Optional[str], base_url: str) -> Any:
    """Return a client of the SDK. Blocks for a second or so: it imports the SDK and reads certificates.

    :raises ConfigError: if the SDK is not installed, or the key cannot be sent.
    :raises AuthenticationError: if there is no key, neither as an argument nor where the SDK looks for one.
    """
    try:
        import anthropic
    except ImportError as error:
        raise ConfigError(
            "the package anthropic is not installed: pip install 'claude-force-cache[orchestrator]'"
        ) from error
    try:
        # No retries and no time-out of its own: both have one owner, and that is not the SDK.
        client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0, timeout=None)
    except anthropic.AnthropicError as error:
        raise AuthenticationError(
            "the SDK cannot load the credentials it found; set ANTHROPIC_API_KEY", attempts=0
        ) from error
    check_api_key(client.api_key or None)
    check_api_key(client.auth_token or None)
    # The first look at these makes the SDK import more modules, and read files about the platform: here, in a thread.
    client.messages.with_raw_response  # noqa: B018 - see above
    sent = {name.lower() for name in client.default_headers}
    if not {"authorization", "x-api-key"} & sent and getattr(client, "credentials", None) is None:
        raise AuthenticationError("a call to the API needs a key; set ANTHROPIC_API_KEY or give api_key", attempts=0)
    return client


class _LoopClient:
    """The client of one event loop, and its making."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.client: Any = None
        self.closer: Optional[AsyncGenerator[None, None]] = None
        self.failure: Optional[OrchestratorError] = None


class Clients:
    """The clients of one orchestrator.

    Connections belong to the event loop that they were opened in, so every loop has a client of its own, which
    is closed by :meth:`close`, or else when ``asyncio.run`` winds its loop up.

    :param make: returns a new client; called in a worker thread.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._loops: Dict[asyncio.AbstractEventLoop, _LoopClient] = {}

    async def get(self) -> Any:
        """Return this event loop's client.

        :raises OrchestratorError: what ``make`` raises; once for every caller, without trying again until
            :meth:`close`.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            entry = self._loops.get(loop)
            if entry is None:
                for gone in [other for other in self._loops if other.is_closed()]:
                    del self._loops[gone]
                entry = self._loops[loop] = _LoopClient()
        if entry.client is not None:
            return entry.client
        async with entry.lock:
            if entry.failure is not None:
                raise type(entry.failure)(str(entry.failure)) from entry.failure
            if entry.client is None:
                try:
                    client = await anyio.to_thread.run_sync(self._make)
                except OrchestratorError as error:
                    entry.failure = error
                    raise
                entry.closer = self._close_with_loop(loop, client)
                await entry.closer.__anext__()
                entry.client = client
        return entry.client

    async def _close_with_loop(self, loop: asyncio.AbstractEventLoop, client: Any) -> AsyncGenerator[None, None]:
        # asyncio.run finishes the asynchronous generators of its loop before it closes the loop, which makes
        # one that has been started the place for what must be done while the loop still works.
        try:
            yield
        finally:
            with self._lock:
                self._loops.pop(loop, None)
            await client.close()

    async def close(self) -> None:
        """Close this event loop's client. Those of other loops are closed with their loops. Idempotent."""
        with self._lock:
            entry = self._loops.pop(asyncio.get_running_loop(), None)
        if entry is not None and entry.closer is not None:
            await entry.closer.aclose()
