"""The SDK's clients: those of each event loop, made in a thread, closed with the loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import Any, AsyncGenerator, Callable, Dict, Iterator, List, Optional, Set

import anyio.to_thread

from ._errors import AuthenticationError, ConfigError, OrchestratorError
from ._http import library_of
from ._limiter import ConcurrencyLimiter
from ._settings import check_api_key

__all__ = ["Clients", "LoopClient", "make_client"]

_POOLED_CALLS = 5
_IDLE_SECONDS = 10.0


def make_client(api_key: Optional[str], base_url: str) -> LoopClient:
    """Return clients of the SDK. Blocks for a second or so: it imports the SDK and reads certificates.

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
        http_client = anthropic.DefaultAsyncHttpxClient
        certificates = library_of(http_client).create_ssl_context()
        # No retries and no time-out of its own: both have one owner, and that is not the SDK.
        client = anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=None,
            http_client=http_client(verify=certificates, timeout=None),
        )
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
    return LoopClient(client, lambda: client.copy(http_client=http_client(verify=certificates, timeout=None)))


class _Lane:
    """A client with a pool of connections of its own, and how many calls are under way in it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls = 0
        self.retirement: Optional[asyncio.TimerHandle] = None


class LoopClient:
    """A client of the SDK, and others like it, with connections of their own, when many calls are under way.

    The SDK's pool looks at each of its connections twice for every call, so of a hundred calls at once each would pay
    for a hundred. Here calls fill one pool after the other, so that those of a few at once find their connections
    open. A pool that is no longer needed is closed a little later.

    :param client: the first one. Its key, headers and address are those of all.
    :param another: returns another one.
    """

    def __init__(self, client: Any, another: Callable[[], Any]) -> None:
        self.client = client
        self._another = another
        self._lanes: List[_Lane] = [_Lane(client)]
        self._closing: Set[asyncio.Future[None]] = set()
        self._door = ConcurrencyLimiter(1)

    async def turn(self) -> None:
        """Return in a turn of the event loop in which no other call is begun.

        The SDK needs a millisecond or more to begin one, and as long for its reply. Calls that become possible
        together, as after a round of answers, would hold up everything else for the sum of it, round after round.
        """
        await self._door.acquire()
        try:
            await asyncio.sleep(0)
        finally:
            self._door.release()

    @contextmanager
    def lend(self) -> Iterator[Any]:
        """Give a client to one call."""
        lane = next((lane for lane in self._lanes if lane.calls < _POOLED_CALLS), None)
        if lane is None:
            lane = _Lane(self._another())
            self._lanes.append(lane)
        if lane.retirement is not None:
            lane.retirement.cancel()
            lane.retirement = None
        lane.calls += 1
        try:
            yield lane.client
        finally:
            lane.calls -= 1
            if not lane.calls and lane.client is not self.client:
                lane.retirement = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._retire, lane)

    def _retire(self, lane: _Lane) -> None:
        self._lanes.remove(lane)
        closing = asyncio.ensure_future(lane.client.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all of them. Calls that are under way fail."""
        for lane in self._lanes:
            if lane.retirement is not None:
                lane.retirement.cancel()
            await lane.client.close()
        await asyncio.gather(*self._closing)


class _Making:
    """The clients of one event loop, once they are made."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.client: Optional[LoopClient] = None
        self.closer: Optional[AsyncGenerator[None, None]] = None
        self.failure: Optional[OrchestratorError] = None


class Clients:
    """The clients of one orchestrator.

    Connections belong to the event loop that they were opened in, so every loop has clients of its own, which
    are closed by :meth:`close`, or else when ``asyncio.run`` winds its loop up.

    :param make: returns new ones; called in a worker thread.
    """

    def __init__(self, make: Callable[[], LoopClient]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._loops: Dict[asyncio.AbstractEventLoop, _Making] = {}

    async def get(self) -> LoopClient:
        """Return this event loop's clients.

        :raises OrchestratorError: what ``make`` raises; once for every caller, without trying again until
            :meth:`close`.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            entry = self._loops.get(loop)
            if entry is None:
                for gone in [other for other in self._loops if other.is_closed()]:
                    del self._loops[gone]
                entry = self._loops[loop] = _Making()
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

    async def _close_with_loop(self, loop: asyncio.AbstractEventLoop, client: LoopClient) -> AsyncGenerator[None, None]:
        # asyncio.run finishes the asynchronous generators of its loop before it closes the loop, which makes
        # one that has been started the place for what must be done while the loop still works.
        try:
            yield
        finally:
            with self._lock:
                self._loops.pop(loop, None)
            await client.close()

    async def close(self) -> None:
        """Close this event loop's clients. Those of other loops are closed with their loops. Idempotent."""
        with self._lock:
            entry = self._loops.pop(asyncio.get_running_loop(), None)
        if entry is not None and entry.closer is not None:
            await entry.closer.aclose()
